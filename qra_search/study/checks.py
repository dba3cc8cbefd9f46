"""What a study refuses: arguments that cannot be used, and proposals that break a strategy's contract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from qra_search.errors import RunFailed, shorten, wrong_type
from qra_search.evaluator import Evaluator
from qra_search.log.state import StudyState
from qra_search.schemas import MAX_INT, Proposal


class StudyFailed(RunFailed):
    """The search cannot continue."""


def check_proposals(proposals: Sequence[Proposal], state: StudyState) -> list[Proposal]:
    """The proposals themselves; raises StudyFailed if a strategy breaks its contract: what is no proposal, is over the
    budget, or repeats an evaluation."""
    if not isinstance(proposals, Sequence):
        raise StudyFailed(f"the strategy proposed {shorten(proposals)}: a list of Proposal is needed")
    known = {t.proposal.key for t in state.trials}
    for proposal in proposals:
        if not isinstance(proposal, Proposal):
            raise StudyFailed(f"the strategy proposed {shorten(proposal)}: a Proposal is needed")
        size = state.space.memory_bytes(proposal.plan)
        if size > state.memory_limit:
            raise StudyFailed(
                f"the strategy proposed a plan of {size} bytes: at most {state.memory_limit} are allowed, "
                f"state.memory_limit"
            )
        if proposal.key in known:
            raise StudyFailed(
                f"the strategy repeated an evaluation: {proposal.plan}, seed {proposal.seed}: give a plan that is not "
                f"in state.seen, or a new seed, state.next_seed(plan)"
            )
        if proposal.fidelity not in state.fidelities:
            raise StudyFailed(
                f"the strategy proposed fidelity {proposal.fidelity}: it must be one of state.fidelities, "
                f"{state.fidelities}"
            )
        known.add(proposal.key)
    return list(proposals)


def check_evaluator(evaluator: Any) -> Evaluator:
    """The evaluator itself, or BadInput if it is none."""
    if isinstance(evaluator, Evaluator):
        return evaluator
    wanted = (
        "an Evaluator is needed. To search for a model and a task by name, use qra_search.plan or `qra "
        "search`"
    )
    raise wrong_type(
        "evaluator", evaluator, "an instance is needed" if isinstance(evaluator, type) else wanted
    )


def check_options(evaluations: Any, seed: Any, batch: Any) -> None:
    """Raises BadInput for a search budget, a seed or a batch that cannot be used."""
    if not (isinstance(evaluations, Real) and 0 < float(evaluations) < math.inf):
        raise wrong_type("evaluations", evaluations, "a positive number is needed")
    if not (isinstance(seed, Integral) and 0 <= int(seed) < MAX_INT):
        raise wrong_type("seed", seed, "a whole number from 0 on is needed, below 2**63")
    if batch is not None and not (isinstance(batch, Integral) and int(batch) >= 1):
        raise wrong_type("batch", batch, "a whole number from 1 on, or None, is needed")
