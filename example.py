"""An agent improves the prompts of a two-step program, from the first look to the last check.

    python example.py                                            no API key, no network, a few seconds
    python example.py --root-lm openai/gpt-5 --eval-lm openai/gpt-4o-mini          the same with real models

The program reads a support ticket (step 1) and decides who gets it and how fast (step 2). Its prompts are vague, so it
starts out poor. Without arguments two stand-ins take the place of real models:

- `LiteralModel` runs the program. It knows nothing about tickets. It does what its instructions state, word for word,
  and guesses where they state nothing, so better instructions really are what makes its answers better.
- `ScriptedAgent` is the root LM. What it will do is written down in advance (`TURNS`), but its code is real Python that
  really runs in the agent's kernel. It learns the prompts from the examples; none of them is written here.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from typing import Any, Literal

import dspy
from dspy.lm15 import Message, Request, Response, Usage
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlmoptimizer import RLMDocstringOptimizer

# ---------------------------------------------------------------------------------------------------------------------
# The program that is optimized: two steps, and prompts as people write them on the first day.


class ReadTicket(dspy.Signature):
    """Read the support ticket."""

    ticket: str = dspy.InputField()
    topic: Literal["question", "billing", "access", "outage"] = dspy.OutputField()
    impact: Literal["one person", "everyone"] = dspy.OutputField()


class RouteTicket(dspy.Signature):
    """Route the ticket."""

    topic: str = dspy.InputField()
    impact: str = dspy.InputField()
    plan: str = dspy.InputField()
    queue: Literal["support", "finance", "identity", "engineering"] = dspy.OutputField()
    priority: Literal["normal", "high", "urgent"] = dspy.OutputField()


class SupportDesk(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = dspy.Predict(ReadTicket)
        self.route = dspy.Predict(RouteTicket)

    def forward(self, ticket: str, plan: str) -> dspy.Prediction:
        facts = self.read(ticket=ticket)
        return self.route(topic=facts.topic, impact=facts.impact, plan=plan)


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> dspy.Prediction:
    """Half a point for the queue, half for the priority; the feedback tells the agent what was wrong."""
    wrong = [
        f"{field} should be {example[field]!r}, not {prediction[field]!r}"
        for field in ("queue", "priority")
        if example[field] != prediction[field]
    ]
    return dspy.Prediction(score=1 - len(wrong) / 2, feedback="; ".join(wrong) or "right")


# ---------------------------------------------------------------------------------------------------------------------
# The data: id | plan | topic | impact | queue | priority | ticket. Topic and impact are labels of the first step.

TRAIN = """
T-101 | free       | question | one person | support     | normal | How do I rename a workspace?
T-102 | team       | billing  | one person | finance     | normal | The invoice for March shows the wrong address.
T-103 | enterprise | outage   | everyone   | engineering | urgent | The dashboard is down and nobody can see orders.
T-104 | team       | access   | one person | identity    | normal | My password reset link has expired twice.
T-105 | free       | question | one person | support     | normal | Where can I find the keyboard shortcuts?
T-106 | enterprise | billing  | one person | finance     | high   | We were charged for seats that we removed.
T-107 | free       | outage   | one person | engineering | high   | Export fails with error 500 since this morning.
T-108 | enterprise | access   | everyone   | identity    | urgent | Our whole office is locked out after the SSO change.
T-109 | team       | outage   | everyone   | engineering | urgent | Pages load with error 502 for all colleagues.
T-110 | free       | access   | one person | identity    | normal | I changed my phone and cannot login any more.
T-111 | team       | billing  | one person | finance     | normal | Please refund one payment, I was charged twice.
T-112 | team       | question | one person | support     | normal | Is there a dark theme?
T-113 | enterprise | outage   | everyone   | engineering | urgent | Search is down, all warehouses are waiting.
T-114 | free       | billing  | one person | finance     | normal | Can I get a refund for the unused month?
T-115 | team       | access   | everyone   | identity    | urgent | Since the update nobody gets past the login page.
T-116 | enterprise | access   | one person | identity    | normal | A new colleague is locked out of her account.
T-117 | free       | outage   | one person | engineering | high   | My uploads stop with error 413, small files too.
T-118 | enterprise | billing  | one person | finance     | high   | Your invoice does not match our purchase order.
T-119 | enterprise | question | one person | support     | normal | Which browsers are supported?
T-120 | team       | outage   | one person | engineering | high   | The webhook has been down for me since noon.
T-121 | free       | billing  | one person | finance     | normal | Why was my card charged after I cancelled?
T-122 | team       | access   | everyone   | identity    | urgent | The password policy signed out our whole team.
T-123 | team       | question | one person | support     | normal | How many guests may a workspace have?
T-124 | enterprise | billing  | everyone   | finance     | high   | All our offices got an invoice in a wrong currency.
"""

VAL = """
V-201 | enterprise | outage   | everyone   | engineering | urgent | The API is down and nobody can check out.
V-202 | team       | billing  | one person | finance     | normal | I need a copy of last year's invoice.
V-203 | free       | question | one person | support     | normal | How do I invite a guest?
V-204 | team       | access   | one person | identity    | normal | I am locked out after three wrong tries.
V-205 | enterprise | billing  | one person | finance     | high   | We were charged in dollars instead of euros.
V-206 | free       | outage   | one person | engineering | high   | The import ends with error 504.
V-207 | enterprise | access   | everyone   | identity    | urgent | The whole support team is stuck at the login page.
V-208 | team       | question | one person | support     | normal | Can reports be scheduled?
V-209 | team       | outage   | everyone   | engineering | urgent | Chat shows error 503 to all customers.
V-210 | free       | access   | one person | identity    | normal | The password mail never arrives.
V-211 | free       | billing  | one person | finance     | normal | Please refund my last order.
V-212 | enterprise | outage   | everyone   | engineering | urgent | Every report times out for the entire region.
"""


def examples(table: str) -> list[dspy.Example]:
    names = ("id", "plan", "topic", "impact", "queue", "priority", "ticket")
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.strip().splitlines()]
    return [dspy.Example(**dict(zip(names, row, strict=True))).with_inputs("ticket", "plan") for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# The stand-in that runs the program.


class LiteralModel:
    """A model that follows its instructions word for word. An engine for `dspy.LM`, as a provider's client is one.

    It understands two kinds of sentence: "If topic is access and ticket mentions login or password, priority is high."
    and "Otherwise priority is normal." For each output field the first sentence that holds decides. Where none does, it
    guesses: the choice that the text names, else the first choice. As the sub-LM it lists the words that mark a group.
    """

    def complete(self, request: Request) -> Response:
        system = request.system if isinstance(request.system, str) else ""
        question = request.messages[-1].text or ""
        answer = self.fill_fields(system, question) if "Your output fields are" in system else mark_words(question)
        return reply(answer)

    def fill_fields(self, system: str, question: str) -> str:
        structure, _, instructions = system.partition("your objective is:")
        inputs = dict(re.findall(r"\[\[ ## (\w+) ## \]\]\n(.*?)\n\n", question, re.DOTALL))
        outputs = structure.partition("Your output fields are")[2].partition("All interactions")[0]
        answer = ""
        for field, kind in re.findall(r"`(\w+)` \(Literal\[(.*?)\]\)", outputs):
            choices = re.findall("'([^']+)'", kind)
            answer += f"[[ ## {field} ## ]]\n{self.decide(field, choices, inputs, instructions)}\n\n"
        return answer + "[[ ## completed ## ]]"

    def decide(self, field: str, choices: list[str], inputs: dict[str, str], instructions: str) -> str:
        for conditions, value in re.findall(rf"(?:If ([^.]+), |Otherwise ){field} is ([^.]+)\.", instructions):
            if value in choices and all(holds(condition, inputs) for condition in conditions.split(" and ")):
                return value
        text = " ".join(inputs.values()).lower()
        return next((choice for choice in choices if choice in text), choices[0])


def holds(condition: str, inputs: dict[str, str]) -> bool:
    """`topic is access`, or `ticket mentions login, password or locked`; no condition holds always."""
    if not condition:
        return True
    field, verb, rest = [*condition.split(" ", 2), "", ""][:3]
    text = inputs.get(field, "").lower()
    if verb == "mentions":
        return any(re.search(rf"\b{re.escape(word)}\b", text) for word in re.split(r", | or ", rest))
    return verb == "is" and text == rest


def mark_words(question: str) -> str:
    """One line for each group of texts (`## name`, then `- text` lines): the words found in no other group.

    As few words as cover the group's texts; a word of a single text proves nothing, so it is not taken.
    """
    groups = {
        name: [set(re.findall(r"[a-z]{3,}", text.lower())) for text in re.findall(r"^- (.*)$", body, re.MULTILINE)]
        for name, body in re.findall(r"^## (.+)\n((?:- .*\n?)+)", question, re.MULTILINE)
    }
    lines: list[str] = []
    for name, texts in groups.items():
        elsewhere = set().union(*(words for other, rest in groups.items() if other != name for words in rest))
        chosen: list[str] = []
        uncovered = list(texts)
        proven = {word for word, count in Counter(word for words in texts for word in words).items() if count > 1}
        while counts := Counter(word for words in uncovered for word in (words & proven) - elsewhere):
            word = min(counts, key=lambda word: (-counts[word], word))
            chosen.append(word)
            uncovered = [words for words in uncovered if word not in words]
        lines.append(f"{name}: {', '.join(chosen) or 'none'}")
    return "\n".join(lines)


def reply(text: str) -> Response:
    usage = Usage(input_tokens=0, output_tokens=0, total_tokens=0)
    return Response(id=None, model="offline", message=Message.assistant(text), finish_reason="stop", usage=usage)


# ---------------------------------------------------------------------------------------------------------------------
# The stand-in for the root LM: (what it thinks, the code it runs), turn by turn.

TURNS = [
    (
        "First I look at the baseline, which is already paid for, and at one of its examples.",
        """
status = optimization_status()
print("steps:", status["steps"], "budget:", status["remaining_budget"])
baseline = run_data(status["baseline_run_id"])
print(baseline["summary_line"])

row = baseline["examples"][1]
print("ticket:", row["inputs"]["ticket"])
for step in row["steps"]:
    print("step", step["step_name"], "answered", step["outputs"])
print("expected:", row["expected"])
print("feedback:", row["feedback"])
""",
    ),
    (
        "Which step goes wrong first? The labels hold the facts too, so I can compare each step's output with them.",
        """
from collections import Counter

def first_wrong(row):
    for step in row["steps"]:
        wrong = [field for field, value in step["outputs"].items()
                 if value != row["expected"].get(field, value)]
        if wrong:
            return step["step_name"] + ": " + ", ".join(wrong)

def group(run):
    failed = [row for row in run["examples"] if not row["passed"]]
    for where, count in Counter(map(first_wrong, failed)).items():
        print(f"{count:3} examples go wrong first in {where}")

group(baseline)
""",
    ),
    (
        "All of them go wrong while reading. What marks a topic, what marks the impact? That is a question of "
        "language, so I ask the sub-LM, both questions at once.",
        """
labels = [{**row["inputs"], **row["expected"]}
          for row in baseline["examples"]]

def question(field):
    lines = ["Which words mark the tickets of a group and of no other?",
             "One line for each group, `group: word, word`."]
    for name in dict.fromkeys(row[field] for row in labels):
        lines += ["", f"## {name}"]
        lines += ["- " + row["ticket"] for row in labels
                  if row[field] == name]
    return "\\n".join(lines)

marks = {}
answers = llm_query_batched([question("topic"), question("impact")])
for field, answer in zip(["topic", "impact"], answers):
    print(answer)
    for line in answer.splitlines():
        name, _, words = line.partition(": ")
        if name in {row[field] for row in labels}:
            marks[field, name] = words.split(", ")
""",
    ),
    (
        "A question and one person are what is left when nothing marks another group. I write that down as "
        "instructions for `read` and try them on what failed, without setting them yet.",
        """
rest = {"topic": "question", "impact": "one person"}
lines = ["Read the support ticket and state its topic and its impact."]
for (field, name), words in marks.items():
    if name != rest[field]:
        either = " or ".join(words)
        lines.append(f"If ticket mentions {either}, {field} is {name}.")
for field, name in rest.items():
    lines.append(f"Otherwise {field} is {name}.")
read_prompt = "\\n".join(lines)
print(read_prompt, end="\\n\\n")

trial = evaluate_program(failed_from_run=baseline["run_id"],
                         prompts={"read": read_prompt})
print(trial["summary_line"])
group(trial)
""",
    ),
    (
        "The score is no better, but every failure has moved on to `route`: reading is mended. I set the prompt of "
        "`read`, and work out the routing rules from the labels: as few conditions as the data needs.",
        """
update_prompt("read", read_prompt)

def cases(field, topic, facts):
    found = {}
    for row in labels:
        if row["topic"] == topic:
            case = [f"{fact} is {row[fact]}" for fact in facts]
            found.setdefault(" and ".join(case), set()).add(row[field])
    return found

lines = ["Decide who gets the ticket and how fast."]
for field in ["queue", "priority"]:
    for topic in dict.fromkeys(row["topic"] for row in labels):
        for facts in [], ["impact"], ["plan"], ["impact", "plan"]:
            found = cases(field, topic, ["topic", *facts])
            if all(len(values) == 1 for values in found.values()):
                break
        for case, values in found.items():
            lines.append(f"If {case}, {field} is {min(values)}.")
route_prompt = "\\n".join(lines)
print(route_prompt)
""",
    ),
    (
        "Before I spend more I want to know how solid my workspace is. I crash the kernel on purpose: a segmentation "
        "fault, in the middle of my own session.",
        """
import os, signal

print("about to crash")
os.kill(os.getpid(), signal.SIGSEGV)
""",
    ),
    (
        "The kernel is new, my names are back, and budget and prompts never were in it. I go on where I was: set "
        "`route`, and run again everything that failed at first.",
        """
print("still here:", len(labels), "rows of labels and a prompt of",
      len(route_prompt), "characters")
update_prompt("route", route_prompt)
again = evaluate_program(failed_from_run=baseline["run_id"])
print(again["summary_line"])
for row in again["examples"]:
    if not row["passed"]:
        print("still wrong:", row["inputs"]["ticket"], row["feedback"])
""",
    ),
    (
        "Did I break what worked? The rest of train, then one checkpoint on val, which I only ever see as a score.",
        """
passed = [r["example_id"] for r in baseline["examples"] if r["passed"]]
print(evaluate_program(ids=passed)["summary_line"])
val = evaluate_program(split="val")
print(val["summary_line"])
print("rows of val that I may see:", val["examples"])
""",
    ),
    (
        "Train and val both went up, by rules that the data supports. What val still misses, these 24 examples cannot "
        "teach me. I submit the prompts that are set.",
        """
status = optimization_status()
SUBMIT(optimized_dspy_program=status["current_prompts"])
""",
    ),
]


class ScriptedAgent:
    """A root LM that says what `TURNS` holds. Which turn it is, it reads in the question, as any model would."""

    def complete(self, request: Request) -> Response:
        asked = re.findall(r"\[\[ ## iteration ## \]\]\n(\d+)/", request.messages[-1].text or "")
        thought, code = TURNS[min(int(asked[-1]) if asked else 1, len(TURNS)) - 1]
        return reply(f"[[ ## reasoning ## ]]\n{thought}\n\n[[ ## code ## ]]\n{code}\n\n[[ ## completed ## ]]")


# ---------------------------------------------------------------------------------------------------------------------
# The main job, and what it shows.


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    console = Console()
    console.print("A program of two steps routes support tickets. An agent improves its prompts.")
    console.print(f"agent: {options.root_lm or 'a script (offline)'}", markup=False)
    console.print(f"program: {options.eval_lm or 'a stand-in that follows its prompts (offline)'}", markup=False)
    student = SupportDesk()
    before = prompts_of(student)
    root_lm = model(options.root_lm) or dspy.LM("offline/scripted", engine=ScriptedAgent(), cache=False)
    stand_in = dspy.LM("offline/literal", engine=LiteralModel(), cache=False)
    eval_lm = model(options.eval_lm) or stand_in
    optimizer = RLMDocstringOptimizer(
        max_iterations=3,
        root_lm=root_lm,
        sub_lm=model(options.sub_lm) or (None if options.root_lm else stand_in),
        eval_lm=eval_lm,
        root_stateful_session=root_lm.model_type == "responses",
        verbose=not options.quiet,  # the agent's turns, as they happen, on stderr
        run_storage_dir=options.keep,
    )
    optimized = optimizer.compile(student, trainset=examples(TRAIN), valset=examples(VAL), metric=metric)

    show(console, before, optimized)
    console.rule("the optimized program at work")
    with dspy.context(lm=eval_lm):
        ticket = "Nobody in our whole company gets past the login page!"
        answer = optimized(ticket=ticket, plan="enterprise")
    console.print(Text(f"{ticket}\n-> queue {answer.queue}, priority {answer.priority}"))


def show(console: Console, before: dict[str, str], optimized: dspy.Module) -> None:
    """Prompts before and after, then every run with its score and the budget after it."""
    for step, prompt in prompts_of(optimized).items():
        console.rule(f"prompt of {step}")
        console.print(Panel(Text(before[step]), title="before", title_align="left", border_style="red"))
        console.print(Panel(Text(prompt), title="after", title_align="left", border_style="green"))
    console.rule("runs")
    runs = optimized.trial_logs
    table = Table("run", "split", "examples", "prompts", "score", "passed", "budget left", header_style="bold")
    for run in runs:
        passed = f"{run['passed_count']}/{run['evaluated_count']}"
        score, left = f"{run['score']:.1f}", str(run["remaining_budget"])
        table.add_row(run["run_id"], run["split"], which_examples(run), which_prompts(run, before), score, passed, left)
    console.print(table)
    budget, left = runs[0]["remaining_budget"], runs[-1]["remaining_budget"]
    turns = len(optimized.agent_trajectory)
    console.print(f"{turns} turns of the agent, {budget - left} of {budget} budget units spent")


def which_examples(run: dict[str, Any]) -> str:
    config = run["config"]
    if config.get("failed_from_run"):
        return f"failed in {config['failed_from_run']}"
    return "chosen" if config.get("ids") or config.get("limit") else "all"


def which_prompts(run: dict[str, Any], before: dict[str, str]) -> str:
    if run["baseline"]:
        return "as they were"
    changed = [step for step, prompt in run["prompts"].items() if prompt != before[step]]
    return "new: " + ", ".join(changed) if changed else "as they were"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="An agent improves the prompts of a two-step DSPy program.")
    parser.add_argument("--root-lm", metavar="MODEL", help="the agent, such as openai/gpt-5 (default: a script)")
    parser.add_argument("--eval-lm", metavar="MODEL", help="runs the program (default: a stand-in, offline)")
    parser.add_argument("--sub-lm", metavar="MODEL", help="answers the agent's questions (default: the root LM)")
    parser.add_argument("--keep", metavar="DIR", help="keep everything there, for the command `rlmoptimizer`")
    parser.add_argument("--quiet", action="store_true", help="leave out the agent's turns")
    return parser.parse_args(arguments)


def model(name: str | None) -> dspy.LM | None:
    if name is None:
        return None
    # OpenAI keeps the conversation of a Responses model, so each turn sends only what is new.
    return dspy.LM(name, model_type="responses" if name.startswith("openai/") else "chat")


def prompts_of(program: dspy.Module) -> dict[str, str]:
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}


if __name__ == "__main__":
    main()
