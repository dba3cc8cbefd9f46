"""What hears of the events of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qra_search.log.trial import Trial

if TYPE_CHECKING:
    from qra_search.study.study import Study


class Callback:
    """Hears what happens in a study. Every method does nothing by default."""

    def started(self, study: Study) -> None: ...

    def proposed(self, study: Study, trial: Trial) -> None: ...

    def finished(self, study: Study, trial: Trial) -> None: ...

    def ended(self, study: Study) -> None: ...
