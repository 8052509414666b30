"""The rules of tasks, child runs and pauses, each as a small workflow with observations that are right and some not."""

from collections.abc import Mapping
from typing import Any

from tests.simulation.answers import CHILDREN_MAX, child_id, task_id
from tests.simulation.interpreter import RUN_ID, Attempted, CancelRequested, Failing, Spec
from tests.simulation.observations import (
    Began,
    ChildEnd,
    Ended,
    Failure,
    Observation,
    Paused,
    Resumed,
    Success,
    Verdict,
    Withheld,
)
from tests.simulation.small_flows import (
    LEAF,
    Flow,
    cancelled,
    chose,
    completed,
    did,
    failed,
    gave,
    over,
    skipped,
)

Output = dict[str, Any]
CANCELLED = ChildEnd("cancelled")
BROKEN = ChildEnd("failed", code="broken")
EXPIRED = Verdict("expired")


def asks(path: str, attempt: int = 1) -> Observation:
    return Began(path, "1", attempt, "task")


def starts(path: str, attempt: int = 1, inputs: Output | None = None) -> Observation:
    return Began(path, "1", attempt, "run", inputs or {})


def hands_out(path: str) -> Observation:
    return Began(path, "1", 1)


def said(path: str, status: str, attempt: int = 1, **more: Any) -> Output:
    id = task_id(RUN_ID, path, "1", attempt)
    return {"task_id": id, "status": status, "response_payload_json": {"批准": 1}, "completed_by": "ops-1"} | more


def decided(path: str, status: str, attempt: int = 1) -> Ended:
    approval = {} if status == "completed" else {"approved": status == "approved"}
    return Ended(path, "1", "completed", attempt, said(path, status, attempt, **approval), None, None)


def verdict(status: Any) -> Verdict:
    return Verdict(status, {"批准": 1}, "ops-1")


def late(one: Ended) -> Ended:
    return Ended(one.path, one.iteration, one.status, one.attempt, one.output, one.output_text, one.error_code, True)


# Tasks.


def approval(status: str, edges: str = "h>a:approved h>r:rejected h>e", **config: Any) -> Flow:
    return Flow("h:approval a:code r:code e:code", edges, answers={"h": [verdict(status)]}, h=config)


def test_a_verdict_takes_the_edges_that_bear_its_name_and_those_that_bear_none() -> None:
    nothing: Observation = completed({"e": LEAF, "a": LEAF})
    approval("approved").accepts(asks("h"), decided("h", "approved"), skipped("r"), did("e a"), nothing)
    approval("approved").refuses(asks("h"), decided("h", "approved"), did("r"), because="skipped")
    rejected = approval("rejected")
    rejected.accepts(asks("h"), decided("h", "rejected"), skipped("a"), did("e r"), completed({"e": LEAF, "r": LEAF}))
    rejected.refuses(asks("h"), decided("h", "approved"), because="rejected")
    approval("completed").accepts(asks("h"), decided("h", "completed"), skipped("a r"), did("e"), completed(LEAF))
    approval("completed").refuses(asks("h"), decided("h", "completed"), did("a"), because="skipped")


def test_nobody_decides_before_being_asked_and_none_is_asked_twice() -> None:
    flow = approval("approved")
    flow.refuses(decided("h", "approved"), because="begun: False")
    flow.refuses(asks("h"), asks("h"), because="already")
    flow.refuses(starts("h"), because="expected Began")
    flow.refuses(asks("h", attempt=2), because="expected Began")
    flow.refuses(asks("h"), decided("h", "approved"), asks("a"), because="expected Began")
    flow.refuses(asks("a"), because="its turn has not come")
    unanswered = Flow("h:human", "", answers={"h": []})
    unanswered.refuses(asks("h"), decided("h", "approved"), because="nothing yet")
    unanswered.refuses(asks("h"), completed({}), because="too early")


def test_what_expires_fails_and_is_asked_anew() -> None:
    config: Output = {"retry_policy": {"max_attempts": 2}}
    flow = Flow("h:human-input", "", answers={"h": [EXPIRED, verdict("completed")]}, h=config)
    expired = Attempted("h", "1", 1, "task_expired")
    again = [asks("h"), expired, asks("h", 2), decided("h", "completed", 2)]
    flow.accepts(again, completed(said("h", "completed", 2)))
    flow.refuses(asks("h"), expired, decided("h", "completed", 2), because="begun: False")
    flow.refuses(asks("h"), failed("h", "task_expired"), because="Attempted")
    once = Flow("h:human-input", "", answers={"h": [EXPIRED]})
    once.accepts(asks("h"), failed("h", "task_expired"), Failing(), over("failed", "task_expired"))
    handled = Flow("h:human-input a:code", "h>a:failed", answers={"h": [EXPIRED]})
    handled.accepts(asks("h"), failed("h", "task_expired"), did("a"), completed(LEAF))


def test_a_default_stands_in_for_a_verdict_and_takes_no_named_edge() -> None:
    default = {"status": "approved"}
    config: Output = {"on_timeout": "default", "default_output": default}
    flow = Flow("h:approval a:code e:code", "h>a:approved h>e", answers={"h": [EXPIRED]}, h=config)
    flow.accepts(asks("h"), gave("h", default), skipped("a"), did("e"), completed(LEAF))
    flow.refuses(asks("h"), gave("h", default), did("a"), because="skipped")
    flow.refuses(asks("h"), failed("h", "task_expired"), because="completed")


def test_a_cancelled_task_fails_its_node_for_good() -> None:
    config: Output = {"retry_policy": {"max_attempts": 3}}
    flow = Flow("h:human", "", answers={"h": [Verdict("cancelled")]}, h=config)
    flow.accepts(asks("h"), failed("h", "task_cancelled"), Failing(), over("failed", "task_cancelled"))
    flow.refuses(asks("h"), Attempted("h", "1", 1, "task_cancelled"), because="failed")


def test_a_failing_run_cancels_its_tasks_and_hears_no_verdict() -> None:
    flow = Flow("s:code h:human b:code", "s>h s>b", {"b": 1}, answers={"h": [verdict("approved")]})
    begun = [*did("s"), asks("h"), failed("b"), Failing()]
    flow.accepts(begun, cancelled("h"), over("failed", "broken"))
    flow.refuses(begun, late(decided("h", "approved")), because="cancelled")
    flow.refuses(begun, over("failed", "broken"), because="in flight: ['h 1']")
    flow.refuses(begun, skipped("h"), because="cancelled")


# Child runs.


def child(*ends: ChildEnd, nodes: str = "c:workflow", edges: str = "", **config: Any) -> Flow:
    return Flow(nodes, edges, answers={"c": ends}, c=config)


def test_a_node_comes_to_what_its_child_comes_to() -> None:
    flow = child(ChildEnd("completed", {"sum": 3}, "drei"))
    result = gave("c", {"sum": 3}, text="drei")
    flow.accepts(starts("c"), result, completed({"sum": 3}))
    flow.refuses(starts("c"), gave("c", {"sum": 4}, text="drei"), because="'sum': 3")
    flow.refuses(starts("c"), gave("c", {"sum": 3}), because="drei")
    flow.refuses(result, because="begun: False")
    flow.refuses(asks("c"), because="expected Began")
    child().refuses(starts("c"), result, because="nothing yet")


def test_a_child_is_given_what_its_parents_templates_say() -> None:
    flow = Flow(
        "s:code c:workflow",
        "s>c",
        answers={"c": [ChildEnd("completed", {})]},
        c={"inputs": {"at": "{{nodes.s.output.at}}", "x": [1, "{{inputs.客户}}"]}},
    )
    given = {"at": "1", "x": [1, "阿里"]}
    flow.accepts(did("s"), starts("c", inputs=given), gave("c", {}), completed({}), inputs={"客户": "阿里"})
    flow.refuses(did("s"), starts("c", inputs=given), because="expected Began")


def test_a_failed_or_compensated_child_is_tried_again_and_a_cancelled_one_not() -> None:
    policy: Output = {"retry_policy": {"max_attempts": 3}}
    compensated = ChildEnd("compensated", code="other")
    flow = child(BROKEN, compensated, ChildEnd("completed", LEAF), **policy)
    first, second = Attempted("c", "1", 1, "broken"), Attempted("c", "1", 2, "other")
    done = Ended("c", "1", "completed", 3, LEAF, None, None)
    flow.accepts(starts("c"), first, starts("c", 2), second, starts("c", 3), done, completed(LEAF))
    flow.refuses(starts("c"), first, starts("c", 3), because="expected Began")
    flow.refuses(starts("c"), first, done, because="begun: False")
    stopped = child(CANCELLED, **policy)
    stopped.accepts(starts("c"), failed("c", "run_cancelled"), Failing(), over("failed", "run_cancelled"))
    stopped.refuses(starts("c"), Attempted("c", "1", 1, "run_cancelled"), because="failed")


def test_a_child_that_was_refused_is_not_tried_again_nor_compensated() -> None:
    flow = Flow(
        "s:code c:workflow u:code",
        "s>c",
        answers={"c": [ChildEnd("refused", code="no_published_version")]},
        c={"compensation_node_id": "u", "retry_policy": {"max_attempts": 3}},
    )
    refused = [*did("s"), starts("c"), failed("c", "no_published_version"), Failing()]
    flow.accepts(refused, over("failed", "no_published_version"))
    flow.refuses(refused, did("c/u"), because="no compensation now")
    begun = Flow("c:workflow u:code", "", answers={"c": [BROKEN]}, c={"compensation_node_id": "u"})
    begun.accepts(starts("c"), failed("c"), Failing(), did("c/u"), over("compensated", "broken"))


def test_runs_nest_no_deeper_than_the_limit() -> None:
    flow = child(ChildEnd("completed", LEAF), compensation_node_id="u", nodes="c:workflow u:code")
    flow.accepts(starts("c"), gave("c", LEAF), completed(LEAF), depth=7)
    end: list[Observation] = [Failing(), over("failed", "depth_exceeded")]
    flow.accepts(failed("c", "depth_exceeded"), *end, depth=8)
    flow.refuses(starts("c"), because="depth_exceeded", depth=8)
    flow.refuses(failed("c", "depth_exceeded"), because="nothing yet", depth=7)


def test_a_run_starts_no_more_children_than_the_limit() -> None:
    flow = child(ChildEnd("completed", LEAF))
    spec = Spec(flow.dsl, {}, RUN_ID, flow.effects)
    spec.children = CHILDREN_MAX - 1
    assert spec.observe(starts("c")) == []
    assert spec.observe(gave("c", LEAF)) == []
    full = Spec(flow.dsl, {}, RUN_ID, flow.effects)
    full.children = CHILDREN_MAX
    assert "too_many_children" in full.observe(starts("c"))[0]


def unwinding(*ends: ChildEnd, **config: Any) -> Flow:
    undo = " u:code" if "compensation_node_id" in config else ""
    return Flow(f"s:code c:workflow b:code{undo}", "s>c s>b", {"b": 1}, answers={"c": ends}, c=config)


def test_a_failing_run_waits_for_a_child_that_has_begun_and_counts_what_that_comes_to() -> None:
    flow = unwinding(ChildEnd("completed", LEAF), compensation_node_id="u")
    begun = [*did("s"), starts("c"), failed("b"), Failing()]
    done = late(gave("c", LEAF))
    flow.accepts(begun, done, did("c/u"), over("compensated", "broken"))
    flow.refuses(begun, cancelled("c"), because="completed")
    flow.refuses(begun, over("failed", "broken"), because="in flight: ['c 1']")
    flow.refuses(begun, did("c/u"), because="no compensation now")
    stopped = unwinding(CANCELLED, compensation_node_id="u", retry_policy={"max_attempts": 2})
    gone = late(failed("c", "run_cancelled"))
    stopped.accepts(begun, gone, over("failed", "broken"))
    stopped.refuses(begun, Attempted("c", "1", 1, "run_cancelled"), because="failed")


def test_a_child_that_has_not_begun_is_cancelled_with_its_run() -> None:
    flow = unwinding(ChildEnd("completed", LEAF), delay_seconds=1)
    begun = [*did("s"), failed("b"), Failing()]
    flow.accepts(begun, cancelled("c"), over("failed", "broken"))
    flow.refuses(begun, starts("c"), because="its turn has not come")
    flow.refuses(begun, late(gave("c", LEAF)), because="cancelled")


def test_cancelling_waits_for_children_unless_it_is_forced() -> None:
    flow = unwinding(CANCELLED)
    begun = [*did("s"), starts("c")]
    asked = [*begun, CancelRequested(), *cancelled("b")]
    flow.accepts(asked, late(failed("c", "run_cancelled")), over("cancelled"))
    flow.refuses(asked, cancelled("c"), because="failed")
    flow.accepts(begun, CancelRequested(force=True), cancelled("b c"), over("cancelled"))
    flow.accepts(asked, CancelRequested(force=True), cancelled("c"), over("cancelled"))


def test_an_early_join_cuts_what_waits() -> None:
    flow = Flow(
        "s:code a:code c:workflow h:human j:join",
        "s>a s>c s>h a>j c>j h>j",
        answers={"c": [ChildEnd("completed", LEAF)], "h": [verdict("approved")]},
        j={"join_policy": "any_completed"},
    )
    begun = [*did("s"), starts("c"), asks("h"), *did("a"), gave("j", {})]
    flow.accepts(begun, cancelled("c h"), completed({}))
    flow.refuses(begun, gave("c", LEAF), because="cancelled")
    flow.refuses(begun, skipped("h"), because="cancelled")


def test_what_somebody_outside_says_of_a_waiting_node_counts() -> None:
    flow = Flow("h:human a:code", "h>a:approved", answers={"h": []})
    by_hand = Ended("h", "1", "completed", 1, {"status": "approved"}, None, None, by_hand=True)
    flow.accepts(asks("h"), by_hand, skipped("a"), completed({"status": "approved"}))
    flow.refuses(asks("h"), gave("h", {"status": "approved"}), because="nothing yet")


def test_compensations_may_ask_people_and_start_children() -> None:
    flow = Flow(
        "s:code b:code h:approval c:workflow",
        "s>b",
        {"b": 1},
        answers={"b/h": [verdict("approved")], "s/c": [BROKEN]},
        s={"compensation_node_id": "c"},
        b={"compensation_node_id": "h"},
    )
    begun = [*did("s"), failed("b"), Failing()]
    undone = [asks("b/h"), decided("b/h", "approved")]
    flow.accepts(begun, undone, starts("s/c"), failed("s/c"), over("failed", "compensation_failed"))
    flow.refuses(begun, decided("b/h", "approved"), because="no compensation now")
    flow.refuses(begun, starts("s/c"), because="its turn has not come")


# Pauses.


PAUSED: Observation = Paused()
RESUMED: Observation = Resumed()


def test_under_pause_nothing_begins_and_what_has_begun_may_end() -> None:
    flow = Flow("s:code a:code b:code e:answer", "s>a s>b a>e b>e", e={"text": "{{nodes.a.text}}"})
    end: list[Observation] = [gave("e", {"text": "a"}, text="a"), completed({"text": "a"}, "a")]
    begun = [*did("s"), hands_out("a"), PAUSED, *did("a")]
    flow.accepts(begun, RESUMED, did("b"), end)
    flow.refuses(begun, did("b"), because="paused by ['self']")
    flow.refuses(begun, hands_out("b"), because="under pause")
    both = [*did("s"), hands_out("a"), hands_out("b"), PAUSED, *did("a b")]
    flow.accepts(both, RESUMED, end)
    flow.refuses(both, end, because="paused")


def test_a_step_that_is_taken_back_cannot_end_before_it_begins_anew() -> None:
    flow = Flow("s:code", "")
    taken_back = [hands_out("s"), PAUSED, Withheld("s", "1")]
    flow.accepts(taken_back, RESUMED, hands_out("s"), did("s"), completed(LEAF))
    flow.refuses(taken_back, did("s"), because="paused")
    flow.refuses(hands_out("s"), Withheld("s", "1"), because="without a pause")
    flow.refuses(taken_back, hands_out("s"), because="under pause")


def test_a_run_is_paused_until_both_pauses_are_over_and_by_each_once() -> None:
    flow = Flow("s:code", "")
    both = [PAUSED, Paused("parent"), Resumed("parent")]
    flow.accepts(both, RESUMED, did("s"), completed(LEAF))
    flow.refuses(both, did("s"), because="paused by ['self']")
    flow.refuses(PAUSED, PAUSED, because="changes nothing")
    flow.refuses(RESUMED, because="changes nothing")
    flow.refuses(PAUSED, Resumed("parent"), because="changes nothing")


def test_under_pause_verdicts_and_children_count_and_attempts_are_repeated_later() -> None:
    flow = Flow(
        "s:code h:human c:workflow",
        "s>h s>c",
        answers={"h": [verdict("rejected")], "c": [BROKEN, ChildEnd("completed", LEAF)]},
        c={"retry_policy": {"max_attempts": 2}},
    )
    ended: list[Observation] = [decided("h", "rejected"), Attempted("c", "1", 1, "broken")]
    begun = [*did("s"), asks("h"), starts("c"), PAUSED, *ended]
    done = Ended("c", "1", "completed", 2, LEAF, None, None)
    output = completed({"h": said("h", "rejected", approved=False), "c": LEAF})
    flow.accepts(begun, RESUMED, starts("c", 2), done, output)
    flow.refuses(begun, starts("c", 2), because="under pause")
    flow.refuses(did("s"), PAUSED, asks("h"), because="under pause")


def test_under_pause_node_runs_are_skipped_and_refused() -> None:
    flow = Flow(
        "s:if-else a:code b:code h:code e:code",
        "s>a:true s>b:false a>h h>h h>e:failed",
        s={"expression": "true"},
        h={"allow_loop": True, "max_iterations": 1},
    )
    flow.accepts(
        chose("s", True),
        did("a"),
        Began("h", "1", 1),
        PAUSED,
        skipped("b"),
        did("h"),
        failed("h", "max_iterations_exceeded", at="2", attempt=0),
        RESUMED,
        did("e"),
        completed(LEAF),
    )


def test_a_paused_run_fails_and_ends_but_compensates_only_when_it_is_resumed() -> None:
    plain = Flow("s:code", "", {"s": 1})
    plain.accepts(hands_out("s"), PAUSED, failed("s"), Failing(), over("failed", "broken"))
    flow = Flow("s:code u:code", "", {"s": 1}, s={"compensation_node_id": "u"})
    begun = [hands_out("s"), PAUSED, failed("s"), Failing()]
    flow.accepts(begun, RESUMED, did("s/u"), over("compensated", "broken"))
    flow.refuses(begun, did("s/u"), because="no compensation now")
    flow.refuses(begun, hands_out("s/u"), because="under pause")
    flow.refuses(begun, over("failed", "broken"), because="too early")
    flow.accepts(
        hands_out("s"), failed("s"), Failing(), hands_out("s/u"), PAUSED, did("s/u"), over("compensated", "broken")
    )


def test_a_paused_run_can_be_cancelled() -> None:
    flow = Flow("s:code a:code b:answer", "s>a s>b", b={"text": "x"})
    flow.accepts(did("s"), PAUSED, CancelRequested(), cancelled("a b"), over("cancelled"))


# Errors.


def test_a_failed_node_run_is_seen_as_it_was_left() -> None:
    class Leaving(Flow):
        def effects(self, path: str, iteration: str, attempt: int) -> Success | Failure:
            return Failure("broken", output={"half": 1}, text="half") if path == "s" else Success(LEAF)

    template = "{{nodes.s.error.code}} {{nodes.s.output.half}} {{nodes.s.text}}"
    flow = Leaving("s:code a:answer", "s>a:failed", a={"template": template})
    left = Ended("s", "1", "failed", 1, {"half": 1}, "half", "broken")
    flow.accepts(
        left,
        gave("a", {"text": "broken 1 half"}, text="broken 1 half"),
        completed({"text": "broken 1 half"}, "broken 1 half"),
    )
    flow.refuses(failed("s"), because="half")


def test_a_node_is_what_its_last_run_was_that_completed_or_failed() -> None:
    class OnceBroken(Flow):
        def effects(self, path: str, iteration: str, attempt: int) -> Success | Failure:
            broken = path == "h" and iteration == "2"
            return Failure("broken") if broken else Success({"at": iteration})

    flow = OnceBroken(
        "s:code h:code c:if-else a:answer",
        "s>h h>c c>h:true h>a:failed",
        h={"allow_loop": True},
        c={"expression": "nodes.h.error == null"},
        a={"template": "{{nodes.h.error.code}}{{nodes.h.output.at}}"},
    )
    begun = [*did_at("s"), *did_at("h"), chose("c", True), failed("h", at="2"), *skipped("c", "2")]
    text = "broken"
    flow.accepts(begun, gave("a", {"text": text}, text=text), completed({"text": text}, text))
    flow.refuses(begun, gave("a", {"text": "broken1"}, text="broken1"), because="'text': 'broken'")


def did_at(path: str, at: str = "1") -> list[Observation]:
    return [gave(path, {"at": at}, at)]


def test_a_compensation_sees_the_error_that_it_makes_up_for() -> None:
    def flow(fails: Mapping[str, int]) -> Flow:
        return Flow(
            "s:code b:code u:template-transform",
            "s>b",
            fails,
            s={"compensation_node_id": "u", "on_error": "continue"},
            b={"compensation_node_id": "u"},
            u={"template": "{{current.compensates}} {{current.error.code}}"},
        )

    def undone(path: str, text: str) -> Ended:
        return gave(f"{path}/u", {"text": text}, text=text)

    end: list[Observation] = [undone("s", "s broken"), over("compensated", "broken")]
    flow({"b": 1}).accepts(did("s"), failed("b"), Failing(), undone("b", "b broken"), end)
    both: list[Observation] = [gave("s", {}, error="broken"), failed("b"), Failing()]
    flow({"s": 1, "b": 1}).accepts(both, undone("b", "b broken"), end)
    cancelled_run = [*did("s"), CancelRequested(compensate=True), *cancelled("b")]
    flow({}).accepts(cancelled_run, undone("s", "s "), over("cancelled"))


def test_what_never_was_handed_out_is_not_compensated() -> None:
    unreachable = Flow(
        "s:if-else a:code b:code j:join u:code",
        "s>a:true s>b:false a>j b>j",
        s={"expression": "true"},
        j={"join_policy": "n_completed", "n": 2, "compensation_node_id": "u"},
    )
    begun = [chose("s", True), *did("a"), *skipped("b"), failed("j", "join_unreachable", attempt=0), Failing()]
    unreachable.accepts(begun, over("failed", "join_unreachable"))
    unreachable.refuses(begun, did("j/u"), because="no compensation now")
    head: Output = {"allow_loop": True, "max_iterations": 1, "compensation_node_id": "u"}
    exceeded = Flow("s:code h:code u:code", "s>h h>h", h=head)
    past = [*did("s h"), failed("h", "max_iterations_exceeded", at="2", attempt=0), Failing()]
    exceeded.accepts(past, did("h/u"), over("compensated", "max_iterations_exceeded"))
    exceeded.refuses(past, did("h/u", "2"), because="expected")


def test_ids_of_tasks_and_children_name_the_attempt() -> None:
    places = [("h", "1", 1), ("h", "1", 2), ("h", "2", 1), ("s/h", "1", 1)]
    ids = {make(RUN_ID, *place) for place in places for make in (task_id, child_id)}
    assert len(ids) == 2 * len(places)
