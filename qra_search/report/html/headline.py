"""The first lines of a report: what was found, its figures marked, and what these figures are."""

from __future__ import annotations

from qra_search.report.data import RunData
from qra_search.report.finding import CHANCE, doubt_text, gain_text
from qra_search.report.formatting import loss_text, pair_text, plan_name
from qra_search.report.html.markup import prose
from qra_search.space.memory import format_bytes


def headline(run: RunData) -> str:
    """What a run has to say, its figures marked; the plain words are those of `run.said`."""
    found = run.finding
    if found is None:
        return _foretold(run) or prose(run.said).rstrip(".")
    within = f"within {prose(format_bytes(found.budget))}"
    if found.rival is None:
        return f'<span class="found">{prose(loss_text(found.loss))}</span> {within}'
    low, high = pair_text(found.loss, found.rival_loss)
    if found.doubtful or found.unproven:
        return f"Loss {low} and {high} {within}: {CHANCE if found.doubtful else 'not told apart from chance'}"
    if not found.beats:
        return f"No plan found beats {prose(plan_name(found.rival, found.space))} {within}"
    return f'<span class="found">{low}</span> instead of <span class="rival">{high}</span> {within}'


def lead(run: RunData) -> str:
    """What the headline's figures are."""
    found = run.finding
    if found is None:
        if not run.plan:
            return "The report fills as evaluations end."
        return f"UniformPrediction from the sensitivities alone. {prose(run.said) if _foretold(run) else ''}".strip()
    data = "on test data that the search never saw" if found.data == "test" else "on validation data"
    if found.rival is None:
        return f"Loss of the best plan found {data}. There is no uniform plan to compare it with under this budget."
    rival = (
        f"<strong>{prose(plan_name(found.rival, found.space))}</strong> of {prose(format_bytes(found.rival_bytes))}, "
        "the strongest uniform plan that fits"
    )
    if found.doubtful or found.unproven:
        more = (
            "Before relying on it tune both with more seeds or test rows."
            if found.data == "test"
            else "Before relying on it confirm it with more seeds, or let an evaluation see more (evaluation.steps, "
            "evaluation.validation_rows)."
        )
        return f"Loss of the plan found {data}, beside that of {rival}: {prose(doubt_text(found))}. {more}"
    if not found.beats:
        return (
            f"Loss {data}: {prose(loss_text(found.loss))} at best, against {prose(loss_text(found.rival_loss))} of "
            f"{rival}. More evaluations may find one; uniform is the plan to use until then."
        )
    return f"Loss of the plan found {data}, against {rival}: <strong>{prose(gain_text(found))}</strong>."


def _foretold(run: RunData) -> str:
    """The forecast within the largest budget in a few words; empty if there is none, or no uniform plan beside it."""
    limits = run.result.memory_budgets[-1:]
    foretold = run.result.forecast(limits[0]) if limits and not run.result.failures() else None
    if foretold is None or foretold.rival is None or foretold.rival.plan == foretold.plan:
        return ""
    rival, within = plan_name(foretold.rival.plan, run.result.space), f"within {format_bytes(foretold.budget)}"
    if not foretold.rival.certain:
        return prose(f"Planned {within}: the predicted difference to {rival} is {CHANCE}")
    gain = prose(f"{foretold.rival.gain:.3f} nats")
    return f'Predicted <span class="found">{gain}</span> {prose(f"lower than {rival} {within}")}'
