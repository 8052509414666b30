"""The rules of a run, each as a small workflow with observations that are right and some that are not."""

from collections.abc import Mapping
from typing import Any

from tests.simulation.interpreter import RUN_ID, Attempted, CancelRequested, Failing, Observation, check
from tests.simulation.loops import Graph
from tests.simulation.observations import Ended
from tests.simulation.small_flows import (
    LEAF,
    Config,
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

LESS = {"expression": "len(default(state.c, '')) < 2"}
TICK = {"assignments": {"c": "{{state.c}}x"}}


def ticked(at: str, c: str) -> Ended:
    return gave("tick", {"state_updates": {"c": c}}, at)


# Edges and joins.


def test_a_diamond_without_a_join_waits_for_both_arms() -> None:
    flow = Flow("s:code a:code b:code e:code", "s>a s>b a>e b>e")
    flow.accepts(did("s b a e"), completed(LEAF))
    flow.refuses(did("s b e"), because="nothing yet")
    flow.refuses(did("s b a"), completed(LEAF), because="too early")


def test_an_exclusive_branch_merges_without_a_join() -> None:
    flow = Flow("s:if-else a:code b:code e:code", "s>a:true s>b:false a>e b>e", s={"expression": "1 < 2"})
    flow.accepts(chose("s", True), did("a"), skipped("b"), did("e"), completed(LEAF))
    flow.accepts(chose("s", True), skipped("b"), did("a e"), completed(LEAF))
    flow.refuses(chose("s", True), did("a"), skipped("b e"), because="expected")
    flow.refuses(chose("s", True), did("b"), because="expected")
    flow.refuses(chose("s", False), because="expected")


def test_the_first_case_that_holds_is_the_route() -> None:
    cases = [{"id": "no", "expression": "false"}, {"id": "x", "expression": "true"}]
    flow = Flow("s:if-else a:code b:code", "s>a:x s>b:no", s={"cases": cases})
    flow.accepts(gave("s", {"condition_result": True, "route": "x"}), did("a"), skipped("b"), completed(LEAF))


def test_a_join_that_passes_early_withdraws_what_leads_only_to_it() -> None:
    flow = Flow(
        "s:code a:code b:code b2:code j:join e:code",
        "s>a s>b a>j b>b2 b2>j j>e",
        j={"join_policy": "any_completed"},
    )
    flow.accepts(did("s a"), gave("j", {}), cancelled("b"), skipped("b2"), did("e"), completed(LEAF))
    flow.refuses(did("s a"), gave("j", {}), did("b"), because="cancelled")
    flow.refuses(did("s a"), gave("j", {}), skipped("b"), because="cancelled")
    flow.refuses(did("s a"), gave("j", {}), cancelled("b2"), because="skipped")
    flow.refuses(did("s a"), cancelled("b"), because="completed")
    flow.refuses(did("s"), gave("j", {}), because="nothing yet")


def test_an_early_join_leaves_alone_what_also_leads_elsewhere() -> None:
    flow = Flow("s:code a:code b:code c:code j:join", "s>a s>b a>j b>j b>c", j={"join_policy": "any_completed"})
    flow.accepts(did("s a"), gave("j", {}), did("b c"), completed({"j": {}, "c": LEAF}))
    flow.refuses(did("s a"), gave("j", {}), cancelled("b"), because="completed")


def test_a_join_of_n_fails_once_n_cannot_be_reached() -> None:
    nodes, edges = "s:if-else a:code b:code j:join e:code", "s>a:true s>b:false a>j b>j j>e"
    config: Config = {"s": {"expression": "true"}, "j": {"join_policy": "n_completed", "n": 2}}
    end: list[Observation] = [Failing(), over("failed", "join_unreachable")]
    unreachable = failed("j", "join_unreachable", attempt=0)
    flow = Flow(nodes, edges, **config)
    flow.accepts(chose("s", True), did("a"), skipped("b"), unreachable, end)
    flow.refuses(chose("s", True), did("a"), skipped("b"), gave("j", {}), because="join_unreachable")
    flow.refuses(chose("s", True), did("a"), unreachable, because="nothing yet")
    handled = Flow(nodes, "s>a:true s>b:false a>j b>j j>e:failed", **config)
    handled.accepts(chose("s", True), did("a"), skipped("b"), unreachable, did("e"), completed(LEAF))


def test_a_join_counts_skipped_branches_as_done_and_is_skipped_if_none_is_taken() -> None:
    flow = Flow("s:if-else a:code b:code j:join", "s>a:true s>b:false a>j b>j", s={"expression": "inputs.go"})
    flow.accepts(chose("s", True), did("a"), skipped("b"), gave("j", {}), completed({}), inputs={"go": True})
    neither = Flow("s:if-else a:code j:join", "s>a:other a>j", s={"expression": "true"})
    neither.accepts(chose("s", True), skipped("a j"), completed({"condition_result": True, "route": "true"}))
    neither.refuses(chose("s", True), skipped("a"), gave("j", {}), because="skipped")


def test_whatever_waits_for_nothing_ends_before_the_next_effect_if_promptness_is_asked_for() -> None:
    config: Config = {"join_policy": "any_completed"}
    flow = Flow("s:code a:code b:code c:code j:join", "s>a s>b a>j b>j b>c", j=config)
    lazy = [*did("s a b"), gave("j", {}), *did("c"), completed({"j": {}, "c": LEAF})]
    assert check(flow.dsl, {}, RUN_ID, lazy, flow.effects) == []
    assert "j 1 should have ended" in check(flow.dsl, {}, RUN_ID, lazy, flow.effects, prompt=True)[0]


# Loops.


def test_the_body_repeats_while_a_back_edge_is_taken_and_the_outside_runs_once() -> None:
    flow = Flow(
        "s:code h:code tick:assigner c:if-else e:code",
        "s>h h>tick tick>c c>h:true c>e:false",
        h={"allow_loop": True},
        tick=TICK,
        c=LESS,
    )
    first = [*did("s"), *did("h"), ticked("1", "x"), chose("c", True)]
    flow.accepts(first, did("h", "2"), ticked("2", "xx"), chose("c", False, "2"), did("e"), completed(LEAF))
    flow.refuses(first, did("e"), because="nothing yet")
    flow.refuses(first, did("h", "3"), because="no such node run")
    flow.refuses(first, did("h", "2"), ticked("2", "x"), because="xx")
    flow.refuses(did("s h"), ticked("1", "x"), did("h", "2"), because="no such node run")


def nested() -> Flow:
    return Flow(
        "s:code h:code i:code ic:if-else hc:if-else e:code x:code",
        "s>h h>i i>ic ic>i:true ic>hc:false i>x:failed hc>h:true hc>e:false",
        h={"allow_loop": True},
        i={"allow_loop": True, "max_iterations": 2},
        ic={"expression": "nodes.i.output.at == '1.1'"},
        hc={"expression": "nodes.h.output.at == '1'"},
    )


def test_an_inner_loop_restarts_with_each_outer_iteration() -> None:
    nested().accepts(
        did("s h"),
        did("i", "1.1"),
        chose("ic", True, "1.1"),
        did("i", "1.2"),
        chose("ic", False, "1.2"),
        chose("hc", True, "1"),
        did("h", "2"),
        did("i", "2.1"),
        chose("ic", False, "2.1"),
        chose("hc", False, "2"),
        did("e"),
        skipped("x"),
        completed(LEAF),
    )


def test_an_exit_through_two_levels_resolves_not_taken_only_when_the_outer_loop_ends() -> None:
    inner = [*did("i", "1.1"), chose("ic", True, "1.1"), *did("i", "1.2"), chose("ic", False, "1.2")]
    begun = [*did("s h"), *inner]
    nested().refuses(begun, skipped("x"), because="nothing yet")
    nested().refuses(begun, chose("hc", True), did("h", "2"), skipped("x"), because="nothing yet")


def test_an_exit_taken_inside_leaves_both_loops_and_is_taken_once() -> None:
    flow = Flow(
        "s:code h:code i:code ic:if-else hc:if-else x:code",
        "s>h h>i i>ic i>x ic>i:true ic>hc:false hc>h:true",
        h={"allow_loop": True},
        i={"allow_loop": True},
        ic={"expression": "false"},
        hc={"expression": "nodes.h.output.at == '1'"},
    )
    flow.accepts(
        did("s h"),
        did("i", "1.1"),
        did("x"),
        chose("ic", False, "1.1"),
        chose("hc", True),
        did("h", "2"),
        did("i", "2.1"),
        chose("ic", False, "2.1"),
        chose("hc", False, "2"),
        completed({"x": LEAF, "hc": {"condition_result": False, "route": "false"}}),
    )


def test_past_max_iterations_only_edges_out_of_the_loop_can_be_taken() -> None:
    nodes, edges = "s:code h:code b:code e:code f:code", "s>h h>b b>h h>e:failed h>f"
    flow = Flow(nodes, edges, h={"allow_loop": True, "max_iterations": 1})
    begun = [*did("s h b f")]
    exceeded = failed("h", "max_iterations_exceeded", at="2", attempt=0)
    flow.accepts(begun, exceeded, skipped("b", "2"), did("e"), completed({"f": LEAF, "e": LEAF}))
    flow.refuses(begun, did("h", "2"), because="max_iterations_exceeded")
    flow.refuses(begun, exceeded, did("b", "2"), because="skipped")
    inside = Flow(nodes, "s>h h>b b>h h>b:failed h>e h>f", h={"allow_loop": True, "max_iterations": 1})
    end: list[Observation] = [Failing(), over("failed", "max_iterations_exceeded")]
    inside.accepts(did("s h b e f"), exceeded, end)
    going_on: Config = {"allow_loop": True, "max_iterations": 1, "on_error": "continue"}
    continued = Flow("s:code h:code b:code e:code", "s>h h>b b>h h>e", h=going_on)
    passed = gave("h", {}, "2", error="max_iterations_exceeded")
    continued.accepts(did("s h b e"), passed, skipped("b", "2"), completed(LEAF))


def test_a_loop_that_is_left_goes_on_unless_a_join_outside_passes_early() -> None:
    flow = Flow(
        "s:code h:code out:if-else slow:if-else o:code j:join",
        "s>h s>o h>out h>slow out>h:true out>j:false slow>h:true o>j",
        h={"allow_loop": True},
        out={"expression": "false"},
        slow={"expression": "false"},
        j={"join_policy": "any_completed"},
        o={},
    )
    left = [*did("s h"), chose("out", False)]
    flow.accepts(left, gave("j", {}), skipped("slow"), cancelled("o"), completed({}))
    no = {"condition_result": False, "route": "false"}
    flow.accepts(left, chose("slow", False), gave("j", {}), cancelled("o"), completed({"slow": no, "j": {}}))
    flow.refuses(left, gave("j", {}), chose("slow", False), because="skipped")


def test_a_back_edge_can_be_the_exit_of_an_inner_loop() -> None:
    flow = Flow(
        "s:code h:code i:code c:if-else d:if-else e:code",
        "s>h h>i i>c c>h:true c>d:false d>i:true d>e:false",
        h={"allow_loop": True},
        i={"allow_loop": True},
        c={"expression": "nodes.h.output.at == '1'"},
        d={"expression": "false"},
    )
    assert Graph(flow.dsl).loops["d"] == ("h", "i")
    flow.accepts(
        did("s h"),
        did("i", "1.1"),
        chose("c", True, "1.1"),
        skipped("d", "1.1"),
        did("h", "2"),
        did("i", "2.1"),
        chose("c", False, "2.1"),
        chose("d", False, "2.1"),
        did("e"),
        completed(LEAF),
    )


def test_a_head_that_is_not_reached_is_skipped_with_its_body() -> None:
    flow = Flow(
        "s:if-else h:code b:if-else e:code",
        "s>h:true h>b b>h:true b>e:false",
        s={"expression": "false"},
        h={"allow_loop": True},
        b={"expression": "true"},
    )
    no = {"condition_result": False, "route": "false"}
    flow.accepts(chose("s", False), skipped("h b e"), completed(no))
    flow.refuses(chose("s", False), skipped("h e"), because="nothing yet")


# Failures.


def test_a_failed_edge_is_the_only_one_taken() -> None:
    flow = Flow("s:code a:code b:code", "s>a s>b:failed", {"s": 1})
    flow.accepts(failed("s"), did("b"), skipped("a"), completed(LEAF))
    flow.refuses(failed("s"), did("a"), because="skipped")
    flow.refuses(failed("s"), Failing(), because="not failing")
    flow.refuses(did("s"), because="broken")


def test_on_error_completes_the_node_and_keeps_its_error() -> None:
    def flow(**config: Any) -> Flow:
        return Flow("s:code a:answer", "s>a", {"s": 1}, s=config, a={"template": "{{nodes.s.error.code}}"})

    def told(output: Any) -> list[Observation]:
        text = "broken"
        return [gave("s", output, error="broken"), gave("a", {"text": text}, text=text)]

    end = completed({"text": "broken"}, "broken")
    flow(on_error="continue").accepts(told({}), end)
    flow(on_error="default", default_output={"d": 1}).accepts(told({"d": 1}), end)
    flow(on_error="default", default_output={"d": 1}).refuses(told({}), because="'d': 1")
    flow().refuses(told({}), because="failed")


def test_attempts_are_counted_and_bounded() -> None:
    flow = Flow("s:code", "", {"s": 2}, s={"retry_policy": {"max_attempts": 3}})
    first, second = Attempted("s", "1", 1, "broken"), Attempted("s", "1", 2, "broken")
    flow.accepts(first, second, did("s", attempt=3), completed(LEAF))
    flow.refuses(first, did("s", attempt=2), because="attempt=2")
    flow.refuses(first, first, because="attempt=2")
    flow.refuses(failed("s"), because="Attempted")
    short = Flow("s:code", "", {"s": 2}, s={"retry_policy": {"max_attempts": 2}})
    short.accepts(first, failed("s", attempt=2), Failing(), over("failed", "broken"))
    short.refuses(first, second, because="failed")


def compensating(fails: Mapping[str, int]) -> Flow:
    return Flow(
        "s:code a:code b:code c:code d:code u:code v:code",
        "s>a a>b s>c c>d",
        fails,
        s={"compensation_node_id": "u"},
        a={"compensation_node_id": "v"},
        b={"compensation_node_id": "u"},
        c={"compensation_node_id": "v"},
    )


def test_a_failure_withdraws_awaits_leases_and_compensates_in_reverse() -> None:
    flow = compensating({"b": 1})
    begun = [*did("s a"), failed("b"), Failing()]
    rest = did("b/u a/v s/u")
    flow.accepts(begun, cancelled("c"), rest, over("compensated", "broken"))
    flow.accepts(begun, did("c", leased=True), did("b/u c/v a/v s/u"), over("compensated", "broken"))
    flow.refuses(begun, did("c"), because="leased=True")
    flow.refuses(begun, cancelled("c", leased=True), because="leased=False")
    flow.refuses(begun, rest, because="in flight: ['c 1']")
    flow.refuses(begun, cancelled("c"), did("a/v"), because="b/u")
    flow.refuses(begun, cancelled("c"), did("b/u s/u"), because="a/v")
    flow.refuses(begun, cancelled("c"), did("b/u a/v"), over("compensated", "broken"), because="too early")
    flow.refuses(begun, did("c", leased=True), did("d"), because="not in flight")
    flow.refuses(begun, skipped("d"), because="not in flight")
    flow.refuses(did("s a"), failed("b"), cancelled("c"), did("b/u"), because="announced: False")


def test_a_compensation_that_fails_does_not_stop_the_rest() -> None:
    flow = compensating({"b": 1, "a/v": 1})
    begun = [*did("s a"), failed("b"), Failing(), *cancelled("c"), *did("b/u")]
    flow.accepts(begun, failed("a/v"), did("s/u"), over("failed", "compensation_failed"))
    flow.refuses(begun, failed("a/v"), over("failed", "compensation_failed"), because="too early")
    flow.refuses(begun, failed("a/v"), did("s/u"), over("compensated", "broken"), because="compensation_failed")


def test_without_compensation_the_run_fails_with_the_nodes_error() -> None:
    flow = Flow("s:code a:code", "s>a", {"s": 1})
    flow.accepts(failed("s"), Failing(), over("failed", "broken"))
    flow.refuses(failed("s"), over("failed", "broken"), because="announced: False")
    flow.refuses(failed("s"), Failing(), over("compensated", "broken"), because="expected RunEnded")
    flow.refuses(failed("s"), Failing(), over("failed", "other"), because="broken")


def test_each_iteration_is_compensated_and_sees_its_own_outputs() -> None:
    flow = Flow(
        "s:code h:code c:if-else e:code u:template-transform",
        "s>h h>c c>h:true c>e:false",
        {"e": 1},
        h={"allow_loop": True, "compensation_node_id": "u"},
        c={"expression": "nodes.h.output.at == '1'"},
        u={"template": "{{current.compensates}} {{nodes.h.output.at}} {{nodes.s.text}}"},
    )

    def undone(at: str, text: str) -> Ended:
        return gave("h/u", {"text": text}, at, text)

    flow.accepts(
        did("s h"),
        chose("c", True),
        did("h", "2"),
        chose("c", False, "2"),
        failed("e"),
        Failing(),
        undone("2", "h 2 s"),
        undone("1", "h 1 s"),
        over("compensated", "broken"),
    )


def test_a_cancelled_run_compensates_only_if_asked() -> None:
    flow = compensating({"s/u": 1})
    flow.accepts(did("s a"), CancelRequested(), cancelled("b c"), over("cancelled"))
    flow.accepts(did("s a"), CancelRequested(), cancelled("b"), did("c", leased=True), over("cancelled"))
    asked = [*did("s a"), CancelRequested(compensate=True), *cancelled("b c")]
    flow.accepts(asked, did("a/v"), failed("s/u"), over("failed", "compensation_failed"))
    flow.refuses(asked, over("cancelled"), because="too early")
    flow.refuses(did("s a"), CancelRequested(), cancelled("b"), over("cancelled"), because="in flight: ['c 1']")
    unharmed = compensating({})
    unharmed.accepts(asked, did("a/v s/u"), over("cancelled"))


def test_a_failing_run_refuses_to_be_cancelled_unless_forced() -> None:
    flow = compensating({"b": 1})
    begun = [*did("s a"), failed("b"), Failing(), *cancelled("c")]
    flow.refuses(begun, CancelRequested(), because="refused")
    flow.accepts(begun, CancelRequested(force=True), over("cancelled"))
    flow.accepts(begun, did("b/u"), CancelRequested(force=True), over("cancelled"))


# Values.


def test_the_outputs_of_ends_are_merged_in_order_of_completion() -> None:
    flow = Flow(
        "s:start a:end b:end",
        "s>a s>b",
        s={"inputs": {"x": {"default": 5}}},
        a={"outputs": {"one": "{{state.x}}", "both": "a"}},
        b={"outputs": {"both": "b", "given": "{{inputs.y}}"}},
    )
    a, b = gave("a", {"one": 5, "both": "a"}), gave("b", {"both": "b", "given": True})
    start = gave("s", {"x": 5, "y": True})
    flow.accepts(start, a, b, completed({"one": 5, "both": "b", "given": True}), inputs={"y": True})
    flow.accepts(start, b, a, completed({"one": 5, "both": "a", "given": True}), inputs={"y": True})


def test_templates_read_the_defaults_of_inputs_that_were_not_given() -> None:
    declared = {"inputs": {"plan": {"default": "免费"}, "n": {"default": 1}}}
    flow = Flow("s:start a:answer", "s>a", s=declared, a={"text": "{{inputs.plan}} {{inputs.n}}"})
    said = gave("a", {"text": "免费 2"}, text="免费 2")
    flow.accepts(gave("s", {"plan": "免费", "n": 2}), said, completed({"text": "免费 2"}, "免费 2"), inputs={"n": 2})


def test_an_assigner_computes_from_the_state_before_it() -> None:
    swap = {"assignments": {"x": "{{state.y}}", "y": "{{state.x}}"}}
    flow = Flow("a:assigner b:assigner", "a>b", a={"assignments": {"x": 1, "y": True}}, b=swap)
    first = gave("a", {"state_updates": {"x": 1, "y": True}})
    updates = {"state_updates": {"x": True, "y": 1}}
    flow.accepts(first, gave("b", updates), completed(updates))
    flow.refuses(first, gave("b", {"state_updates": {"x": 1, "y": 1}}), because="True")


def test_a_template_is_text_or_filled_in_json() -> None:
    flow = Flow(
        "s:code t:template-transform j:template-transform",
        "s>t t>j",
        t={"template": "at {{nodes.s.output.at}} {{nodes.s.missing}}"},
        j={"template": '{"a": "{{nodes.t.text}}", "b": ["{{nodes.missing.x}}", "{{nodes.s.output}}"]}'},
    )
    value = {"json": {"a": "at 1 ", "b": [None, LEAF]}}
    flow.accepts(did("s"), gave("t", {"text": "at 1 "}, text="at 1 "), gave("j", value), completed(value))


def test_what_cannot_be_evaluated_fails_its_node() -> None:
    flow = Flow("s:if-else a:code", "s>a:true", s={"expression": "state.none + 1 > 0"})
    flow.accepts(failed("s", "evaluation_failed"), Failing(), over("failed", "evaluation_failed"))


def test_a_kind_without_an_implementation_fails() -> None:
    flow = Flow("s:agent", "", s={"retry_policy": {"max_attempts": 3}})
    code = "node_type_unavailable"
    flow.accepts(failed("s", code), Failing(), over("failed", code))


def test_true_is_not_one() -> None:
    flow = Flow("a:assigner", "", a={"assignments": {"x": True}})
    flow.refuses(gave("a", {"state_updates": {"x": 1}}), because="True")


def test_nothing_follows_the_end_and_the_end_must_come() -> None:
    flow = Flow("s:code", "")
    flow.refuses(did("s"), because="did not end")
    flow.refuses(did("s"), completed(LEAF), completed(LEAF), because="after the end")
