"""Random valid workflows with what their effects answer, grown from single-entry fragments of the DSL."""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulation import waiting_nodes
from tests.simulation.features import features
from tests.simulation.observations import CancelRequested, Path
from tests.simulation.reads import without_impossible
from tests.simulation.scenarios import NEVER, Behaviour, Oracle, Scenario, Wanted

__all__ = ["Behaviour", "Oracle", "Scenario", "features", "generate"]

NODES_MIN = 3
NODES_MAX = 40
CHILD_NODES_MAX = 12
NESTED_MAX = 3
Out = tuple[str, str | None]  # An edge without a target yet: its source and its label.
LOOP_DEPTH_MAX = 3


@dataclass
class Fragment:
    """A part of the graph that is entered at one node only."""

    entry: str
    outs: list[Out]


@dataclass
class Around:
    """A loop that is being built: its head, and what leaves it from inside."""

    head: str
    breaks: list[Out] = field(default_factory=list)


def generate(seed: int) -> Scenario:
    builder = grown(str(seed))
    scenario = scenario_of(builder, seed)
    chance = builder.chance
    if chance.random() >= 0.15:
        return scenario
    cancel = CancelRequested(compensate=chance.random() < 0.5)
    return replace(scenario, cancel=cancel, cancel_after_ends=chance.randrange(2 * len(builder.nodes)))


def scenario_of(builder: "Builder", seed: int) -> Scenario:
    return Scenario(
        seed=seed,
        dsl=without_impossible({"nodes": builder.nodes, "edges": builder.edges}),
        inputs=builder.inputs,
        effects=Oracle(seed, builder.behaviours, builder.people, builder.children),
    )


def grown(seed: str, nested: int = 0) -> "Builder":
    """A workflow; `nested`: how many others it is started by."""
    for attempt in itertools.count():
        builder = Builder(f"{seed} {attempt}", nested)
        builder.workflow()
        if NODES_MIN <= len(builder.nodes) <= (CHILD_NODES_MAX if nested else NODES_MAX):
            return builder
    raise AssertionError


class Builder:
    """Grows one workflow.

    What texts may read is layered, so that no text doubles with each turn of a loop: `facts` (inputs, what
    effects answer) < `state` (assigners read facts) < text templates < JSON templates, answers, ends.
    """

    def __init__(self, seed: str, nested: int = 0) -> None:
        self.seed = seed
        self.nested = nested
        self.chance = random.Random(seed)
        self.nodes: list[dict[str, Any]] = []
        self.edges: list[dict[str, Any]] = []
        self.inputs: dict[str, Any] = {}
        self.behaviours: dict[Path, Behaviour] = {}
        self.people: dict[str, tuple[Wanted, ...]] = {}
        self.children: dict[str, Scenario | str] = {}
        self.size = self.chance.choice([3, 6] if nested else [3, 6, 10, 15, 20, 25])
        self.fatal = self.chance.choice([0, 0, 1, 2])  # How many failures nobody handles.
        self.trouble = 0.5 if self.fatal else self.chance.choice([0.0, 0.1, 0.3])  # Share of effects that fail.
        self.compensated = self.chance.choice([0.0, 0.3, 0.7])
        self.delayed = self.chance.choice([0.0, 0.0, 0.2])
        self.asks = self.likely(0.35)
        self.starts = self.likely(0.35) and nested < NESTED_MAX
        self.facts = ["run.id", "current.node_id", "inputs.amount", "inputs.extra.1.y", "inputs.客户"]
        self.state = ["state.a", "state.客户", "state.amount", "state.missing.deep"]
        self.texts: list[str] = []
        self.fails = False
        self.conditions = ["inputs.flag", "state.a == 'yes'", "inputs.amount >= 5", "state.客户 != null"]

    def likely(self, probability: float) -> bool:
        return self.chance.random() < probability

    def add(self, kind: str, config: dict[str, Any], *, delays: bool = True) -> str:
        if delays and self.likely(self.delayed):
            config["delay_seconds"] = self.chance.randint(1, 3)
        node = f"{kind}-{len(self.nodes)}"
        self.nodes.append({"id": node, "type": kind, "config": config})
        return node

    def config(self, node: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each["config"] for each in self.nodes if each["id"] == node)
        return found

    def connect(self, outs: list[Out], target: str) -> None:
        for source, label in outs:
            condition = {} if label is None else {"condition": label}
            edge = {"source": source, "target": target, **condition}
            if edge not in self.edges:  # The same edge twice is an error.
                self.edges.append(edge)

    # The whole.

    def workflow(self) -> None:
        first = self.beginning()
        rest = self.sequence([], self.chance.randint(1, 6))
        self.connect(first, rest.entry)
        self.ending(rest.outs)
        self.read_anywhere()

    def beginning(self) -> list[Out]:
        self.inputs = {
            "flag": self.likely(0.5),
            "amount": self.chance.randrange(10),
            "extra": ["x", {"y": 1}],
        }
        if self.likely(0.5):
            self.inputs["客户"] = "阿里"
        declared = {
            "flag": {"type": "boolean"},
            "amount": {"type": "integer", "required": True},
            "extra": {},
            "客户": {},
            "note": {},
            "greeting": {"type": "string", "default": "hello"},
        }
        start = self.add("start", {"inputs": declared} if self.likely(0.7) else {})
        self.facts.append("inputs.greeting")
        return [(start, None), *(self.step([]).outs if self.likely(0.15) else [])]

    def ending(self, outs: list[Out]) -> None:
        match self.chance.choice(["none", "answer", "end", "answer and end", "ends", "ends"]):
            case "answer":
                self.connect(outs, self.add("answer", {"template": self.text(self.readable())}))
            case "end":
                self.connect(outs, self.end())
            case "answer and end":
                answer = self.add("answer", {"text": self.text(self.readable())})
                self.connect(outs, answer)
                self.connect([(answer, None)], self.end())
            case "ends":
                for out in outs[:3]:
                    self.connect([out], self.end())

    def end(self) -> str:
        outputs = {"last": self.placeholder(self.readable()), f"out{len(self.nodes)}": self.value()}
        return self.add("end", {"outputs": outputs})

    def read_anywhere(self) -> None:
        """Some templates also read an effect that comes after them, or beside them."""
        effects = [node["id"] for node in self.nodes if node["type"] == "code"]
        for node in self.nodes:
            template = node["config"].get("template")
            if effects and isinstance(template, str) and template[:1] != "{" and self.likely(0.3):
                node["config"]["template"] += f", {{{{nodes.{self.chance.choice(effects)}.text}}}}"

    # Texts.

    def readable(self) -> list[str]:
        return self.facts + self.state + self.texts

    def placeholder(self, paths: list[str]) -> str:
        return "{{" + self.chance.choice(paths) + "}}"

    def text(self, paths: list[str]) -> str:
        return "; ".join(["text", *(self.placeholder(paths) for _ in range(self.chance.randint(1, 3)))])

    def value(self) -> Any:
        paths = self.readable()
        return self.chance.choice(
            [
                7,
                True,
                "plain",
                self.placeholder(paths),
                {"in": [self.placeholder(paths), self.text(paths), None]},
            ]
        )

    def condition(self) -> str:
        one, other = self.chance.choice(self.conditions), self.chance.choice(self.conditions)
        return self.chance.choice([one, one, f"not ({one})", f"{one} and {other}", f"({one}) or ({other})"])

    # Fragments. `loops` are those being built around the fragment, outermost first.

    def fragment(self, loops: list[Around]) -> Fragment:
        choices: list[Callable[[list[Around]], Fragment]] = [self.step]
        if len(self.nodes) < self.size:
            choices += [self.step, self.step, self.branch, self.branch, self.fan, self.fan, self.handled]
            choices += [self.loop, self.loop] if len(loops) < LOOP_DEPTH_MAX else []
            choices += [self.jump, self.jump] if loops else []
            choices += waiting_nodes.fragments(self, loops)
        return self.chance.choice(choices)(loops)

    def sequence(self, loops: list[Around], length: int) -> Fragment:
        parts: list[Fragment] = []
        begins: list[int] = []
        for _ in range(length):
            begins.append(len(self.nodes))
            outs = parts[-1].outs if parts else []
            part = self.join(outs) if len(outs) > 1 and self.likely(0.4) else self.fragment(loops)
            self.connect(outs, part.entry)
            parts.append(part)
        if length > 2 and self.likely(0.25):
            self.shortcut(parts, begins)
        return Fragment(parts[0].entry, parts[-1].outs)

    def shortcut(self, parts: list[Fragment], begins: list[int]) -> None:
        """An edge from anywhere in one part to the entry of a later one; loops stay single-entry."""
        target = self.chance.randrange(1, len(parts))
        sources = {edge["source"] for edge in self.edges}
        earlier = [n["id"] for n in self.nodes[begins[0] : begins[target]] if n["id"] in sources]
        if earlier:
            source = self.chance.choice(earlier)
            label = "false" if source.startswith("if-else") and self.likely(0.7) else None
            self.connect([(source, label)], parts[target].entry)

    def step(self, loops: list[Around]) -> Fragment:
        kinds = [self.effect, self.effect, self.effect, self.transform, self.assigner, self.answer]
        node = self.chance.choice(kinds)()
        return Fragment(node, [(node, None)])

    def join(self, outs: list[Out]) -> Fragment:
        policy = self.chance.choice(["all_completed", "any_completed", "n_completed", ""])
        config: dict[str, Any] = {"join_policy": policy} if policy else {}
        if policy == "n_completed":
            config["n"] = self.chance.randint(1, len(set(outs)))
            if self.likely(0.3):
                config["on_error"] = "continue"
        node = self.add("join", config)
        fragile = policy == "n_completed" and config["n"] > 1 and "on_error" not in config
        return Fragment(node, [(node, None), *([(node, "failed")] if fragile else [])])

    def branch(self, loops: list[Around]) -> Fragment:
        if self.likely(0.25):
            cases = [{"id": name, "expression": self.condition()} for name in ("low", "high")]
            node, labels = self.add("if-else", {"cases": cases}), ["low", "high", "false"]
        else:
            kind = self.chance.choice(["if-else", "condition"])
            node, labels = self.add(kind, {"expression": self.condition()}), ["true", "false"]
        self.facts += [f"nodes.{node}.output.route", f"nodes.{node}.output.condition_result"]
        outs: list[Out] = [(node, None)] if self.likely(0.1) else []
        if self.likely(0.06):
            self.config(node).update(expression="inputs.extra + 1 > 2", on_error="continue")
            self.config(node).pop("cases", None)
            outs, labels = [(node, None)], ["true", "false"]
        for label in labels:
            fate = self.chance.random()
            if fate < 0.25:
                outs.append((node, label))
            elif fate < 0.9:
                outs += self.follow([(node, label)], loops).outs
        return Fragment(node, outs or [(node, labels[0])])

    def follow(self, outs: list[Out], loops: list[Around]) -> Fragment:
        part = self.sequence(loops, self.chance.choice([1, 1, 2]))
        self.connect(outs, part.entry)
        return part

    def fan(self, loops: list[Around]) -> Fragment:
        fork = self.step(loops)
        arms = [self.follow(fork.outs, loops) for _ in range(self.chance.randint(2, 4))]
        kept = [arms[0], *(arm for arm in arms[1:] if self.likely(0.85))]  # The others lead nowhere.
        outs = [out for arm in kept for out in arm.outs]
        if self.likely(0.6):
            join = self.join(outs)
            self.connect(outs, join.entry)
            outs = join.outs
        return Fragment(fork.entry, outs)

    def handled(self, loops: list[Around]) -> Fragment:
        """An effect that fails at times, and an edge for that, behind which the error is known."""
        node = self.effect(troubled=False)
        leaves = {"result_json": {"n": 3}} if self.likely(0.3) else None
        self.behaviours[node] = Behaviour(0.5, code="payment_refused", retryable=self.likely(0.5), leaves=leaves)
        self.facts.append(f"nodes.{node}.error.code")
        failed: list[Out] = [(node, "failed")]
        outs = self.follow(failed, loops).outs if self.likely(0.7) else failed
        return Fragment(node, [(node, None), *outs])

    # Loops.

    def loop(self, loops: list[Around]) -> Fragment:
        builds = [self.until, self.until, self.loop_while, self.asking, self.retrying, self.spread, self.endless]
        builds += [self.straggler, self.straggler]
        counter = f"c{len(self.nodes)}"
        if self.likely(0.75):
            reset = self.add("assigner", {"assignments": {counter: ""}})
            inner = self.chance.choice(builds)(loops, counter)
            self.connect([(reset, None)], inner.entry)
            return Fragment(reset, inner.outs)
        return self.chance.choice(builds)(loops, counter)

    def around(self, head: str, max_iterations: int | None = None) -> Around:
        """Makes a node the head of a loop, which few times is entered more often than it may."""
        config = self.config(head)
        config["allow_loop"] = True
        if max_iterations is not None:
            config["max_iterations"] = max_iterations
        around = Around(head)
        if max_iterations is None and self.likely(0.15):
            config["max_iterations"] = self.chance.randint(1, 2)
            around.breaks += self.exceeded(head)
        return around

    def exceeded(self, head: str) -> list[Out]:
        if self.fatal and self.likely(0.5):
            self.fatal -= 1
            return []
        if "on_error" in self.config(head) or self.likely(0.4):
            self.config(head).setdefault("on_error", "continue")
            return [(head, None)] if self.likely(0.6) else []
        return [(head, "failed")]

    def tick(self, counter: str) -> str:
        return self.add("assigner", {"assignments": {counter: f"{{{{state.{counter}}}}}x"}})

    def check(self, counter: str) -> str:
        less = f"len(default(state.{counter}, '')) < {self.chance.randint(1, 4)}"
        return self.add("if-else", {"expression": less})

    def head(self) -> str:
        if self.likely(0.3):
            return self.add("join", {"join_policy": self.chance.choice(["all_completed", "any_completed"])})
        return self.step([]).entry

    def until(self, loops: list[Around], counter: str) -> Fragment:
        head = self.head()
        around = self.around(head)
        body = self.follow([(head, None)], [*loops, around])
        tick = self.tick(counter)
        self.connect(body.outs, tick)
        check = self.check(counter)
        self.connect([(tick, None)], check)
        self.connect([(check, "true")], head)
        return Fragment(head, [(check, "false"), *around.breaks])

    def loop_while(self, loops: list[Around], counter: str) -> Fragment:
        head = self.check(counter)
        around = self.around(head)
        body = self.follow([(head, "true")], [*loops, around])
        tick = self.tick(counter)
        self.connect(body.outs, tick)
        self.connect([(tick, None)], head)
        return Fragment(head, [(head, "false"), *around.breaks])

    def asking(self, loops: list[Around], counter: str) -> Fragment:
        """An effect says whether to go on."""
        head = self.effect()
        around = self.around(head)
        check = self.add("if-else", {"expression": f"nodes.{head}.output.result_json.again"})
        outs: list[Out] = [(head, None)]
        if self.likely(0.5):
            outs = self.follow(outs, [*loops, around]).outs
        self.connect(outs, check)
        self.connect([(check, "true")], head)
        return Fragment(head, [(check, "false"), *around.breaks])

    def retrying(self, loops: list[Around], counter: str) -> Fragment:
        """A failure leads back to the head, which may be the failing node itself."""
        before: list[Out] = []
        if self.likely(0.5):
            before = [(self.step([]).entry, None)]
        node = self.effect(troubled=False)
        self.behaviours[node] = Behaviour(until=self.chance.randint(1, 3), code="not_yet")
        self.connect(before, node)
        head = before[0][0] if before else node
        around = self.around(head) if before else Around(head)
        self.config(head)["allow_loop"] = True
        self.connect([(node, "failed")], head)
        return Fragment(head, [(node, None), *around.breaks])

    def spread(self, loops: list[Around], counter: str) -> Fragment:
        """Several arms, each with its own way back and its own exit."""
        head = self.tick(counter)
        around = self.around(head)
        outs: list[Out] = []
        for _ in range(2):
            arm = self.follow([(head, None)], [*loops, around])
            check = self.check(counter)
            self.connect(arm.outs, check)
            self.connect([(check, "true")], head)
            outs.append((check, "false"))
        return Fragment(head, outs + around.breaks)

    def straggler(self, loops: list[Around], counter: str) -> Fragment:
        """An effect that has an exit of its own and is not waited for: it ends in a later turn, or after the last."""
        head = self.tick(counter)
        around = self.around(head)
        slow = self.effect()
        arm = self.follow([(head, None)], [*loops, around])
        join = self.add("join", {"join_policy": "any_completed"})
        check = self.check(counter)
        self.connect([(head, None)], slow)
        self.connect([(slow, None), *arm.outs], join)
        self.connect([(join, None)], check)
        self.connect([(check, "true")], head)
        left: list[Out] = [(slow, None)]
        if self.likely(0.7):
            after = self.step([])
            self.connect(left, after.entry)
            left = after.outs
        self.chance.choice([*loops, *loops, around]).breaks += left
        return Fragment(head, [(check, "false"), *around.breaks])

    def endless(self, loops: list[Around], counter: str) -> Fragment:
        """Only max_iterations or a break ends it."""
        head = self.effect(troubled=False)
        around = self.around(head, self.chance.randint(1, 3))
        body = self.follow([(head, None)], [*loops, around])
        self.connect(body.outs, head)
        outs: list[Out] = [(head, "failed")]
        if self.likely(0.4):
            self.config(head)["on_error"] = "continue"
            outs = [(head, None)]
        return Fragment(head, outs + around.breaks)

    def jump(self, loops: list[Around]) -> Fragment:
        """Leaves a loop from inside, or begins its next turn early; of several loops around, any one."""
        effect = self.effect()
        check = self.add("if-else", {"expression": f"nodes.{effect}.output.result_json.again"})
        self.connect([(effect, None)], check)
        around = self.chance.choice(loops)
        if self.likely(0.3):
            self.connect([(check, "true")], around.head)
        elif self.likely(0.4):
            last = self.step([])
            self.connect([(check, "true")], last.entry)
            around.breaks += last.outs
        else:
            around.breaks.append((check, "true"))
        return Fragment(effect, [(check, "false")])

    # Nodes.

    def effect(self, *, troubled: bool = True) -> str:
        config: dict[str, Any] = {"language": "python", "code": "result = payload"}
        if self.likely(0.3):
            config["input_json"] = {"value": self.placeholder(self.readable())}
        node = self.add("code", config)
        if troubled and self.likely(self.trouble):
            self.make_fail(node, config)
        if self.likely(self.compensated):
            self.compensate(node, config)
        output = f"nodes.{node}.output.result_json"
        self.facts += [f"{output}.n", f"{output}.items", f"{output}.items.0", f"nodes.{node}.text"]
        if "on_error" in config:
            self.facts.append(f"nodes.{node}.error.code")
        self.conditions += [f"{output}.n > 4", f"{output}.again", f"len({output}.items) >= 2"]
        if self.likely(0.2):
            self.conditions.append(f"{output}.n + 1 > 4")  # Fails its node unless the effect has answered.
        return node

    def make_fail(self, node: str, config: dict[str, Any]) -> None:
        attempts = self.chance.choice([1, 2, NEVER])
        leaves = {"result_json": {"n": 7, "items": ["left"]}} if self.likely(0.3) else None
        self.behaviours[node] = Behaviour(
            0.7, attempts, code="upstream_down", retryable=self.likely(0.8), leaves=leaves
        )
        if self.likely(0.7):
            config["retry_policy"] = self.retry_policy()
        self.make_good(config)

    def make_good(self, config: dict[str, Any]) -> None:
        """What may fail goes on all the same, unless a failure that nobody handles is wanted."""
        self.fails = True
        if self.fatal:
            self.fatal -= 1
        elif self.likely(0.5):
            config["on_error"] = "continue"
        else:
            config["on_error"] = "default"
            config.setdefault("default_output", {"result_json": {"n": 5, "again": False, "items": ["d"]}})

    def retry_policy(self) -> dict[str, Any]:
        return {
            "max_attempts": self.chance.randint(2, 3),
            "retry_delay_seconds": self.chance.choice([0, 1, 2]),
            "backoff": self.chance.choice(["fixed", "exponential"]),
        }

    def compensate(self, node: str, config: dict[str, Any]) -> None:
        existing = [each["id"] for each in self.nodes if each["id"].startswith("undo-")]
        undo = self.chance.choice(existing) if existing and self.likely(0.4) else self.undo()
        config["compensation_node_id"] = undo
        if self.likely(self.trouble / 2):
            self.behaviours[f"{node}/{undo}"] = Behaviour(0.6, self.chance.choice([1, NEVER]), code="stuck")

    def undo(self) -> str:
        node = f"undo-{len(self.nodes)}"
        if self.asks and self.likely(0.25):
            return waiting_nodes.asking_to_undo(self, node)
        if self.starts and self.likely(0.25):
            return waiting_nodes.child_to_undo(self, node)
        if self.likely(0.2):
            said = "undo {{current.compensates}} for {{current.error.code}}, " + self.text(self.facts)
            config: dict[str, Any] = {"template": said}
            self.nodes.append({"id": node, "type": "template-transform", "config": config})
            return node
        config = {"language": "python", "code": "result = payload"}
        if self.likely(0.4):
            config["retry_policy"] = self.retry_policy()
        self.nodes.append({"id": node, "type": "code", "config": config})
        return node

    def transform(self) -> str:
        if self.likely(0.4):
            structure = {"list": [self.placeholder(self.readable()), 1], "value": self.value()}
            return self.add("template-transform", {"template": json.dumps(structure, ensure_ascii=False)})
        node = self.add("template-transform", {"template": self.text(self.facts + self.state)})
        self.texts += [f"nodes.{node}.text", f"nodes.{node}.output.text"]
        return node

    def assigner(self) -> str:
        key = self.chance.choice(["a", "客户", f"s{len(self.nodes)}"])
        fact = self.placeholder(self.facts)
        value = self.chance.choice(["yes", "no", fact, f"was {fact}", {"nested": [fact]}, 3])
        node = self.add("assigner", {"assignments": {key: value, f"by_{key}": "{{current.node_id}}"}})
        self.state.append(f"state.{key}")
        return node

    def answer(self) -> str:
        return self.add("answer", {"template": self.text(self.readable())})
