"""The table of campaigns; a campaign is imported when it runs."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.reliability.contract import Campaign
from engines.cli.aborted import importing
from graphs.base.errors import UgsepError, nearest

#: Name -> the module whose ``CAMPAIGN`` it is, in the order of the report.
CAMPAIGNS = {
    "kill": "benchmarks.reliability.kill.campaign",
    "fuzz": "benchmarks.reliability.fuzz.campaign",
    "score": "benchmarks.reliability.score.campaign",
    "threads": "benchmarks.reliability.threads.campaign",
    "resources": "benchmarks.reliability.resources.campaign",
}
#: The figures on the page, in its order: those of the campaigns, and of the fuzzer that has a command of its own.
REPORTED = (*CAMPAIGNS, "coverage")


def campaign(name: str) -> Campaign[Any]:
    """Import a campaign.

    Raises:
        UgsepError: no campaign of that name.
    """
    if name not in CAMPAIGNS:
        raise UgsepError(f"unknown campaign '{name}'{nearest(name, CAMPAIGNS)}")
    with importing():
        found: Campaign[Any] = importlib.import_module(CAMPAIGNS[name]).CAMPAIGN
    return found
