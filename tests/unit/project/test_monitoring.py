"""The rules and the dashboard of docs/monitoring/: they ask for metrics that there are, in queries that can be read."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.support import documents
from tests.support.paths import ROOT

FOLDER = ROOT / "docs" / "monitoring"
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))["panels"]
QUERIES = [one["expr"] for one in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]
KNOWN = {*documents.first_column("metric"), *documents.first_column("metric of workers")}
#: By metric, the labels that it has.
LABELS = {"actor", "queue", "state", "le"}
FUNCTIONS = {"min", "max", "sum", "rate", "increase", "histogram_quantile"}
WORDS = {"by", "and", "unless"}
TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<name>[a-z_]\w*)|(?P<number>\d+(\.\d+)?)|(?P<range>\[(\d+[smh]|\$__rate_interval)\])"""
    r"""|(?P<match>\{\w+=~?"[\w|]+"\})|(?P<sign>[()/>,]|==)"""
)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_there_is(query: str) -> None:
    place, open_, counted = 0, 0, 0
    before = ""
    while place < len(query):
        token = TOKEN.match(query, place)
        assert token, query[place:]
        place = token.end()
        text = token[0]
        open_ += (text == "(") - (text == ")")
        assert open_ >= 0
        if token["name"] and text.startswith("callboard_"):
            counted += 1
            assert re.sub(r"_(bucket|sum|count)$", "", text) in KNOWN or text in KNOWN, text
        elif token["name"]:
            assert text in LABELS | FUNCTIONS | WORDS, text
        if token["match"]:
            assert text[1:].partition("=")[0] in LABELS
        if token["range"]:
            assert re.search(r"_(total|bucket|sum|count)(\{.*\})?$", before), f"the rate of what is no counter: {query}"
        if not token["space"]:
            before = before + text if token["match"] else text
    assert open_ == 0
    assert counted


def test_rules_and_panels_are_named_once_and_say_what_is_wrong() -> None:
    assert len({one["alert"] for one in RULES}) == len(RULES)
    assert all(one["annotations"]["summary"] and one["labels"]["severity"] for one in RULES)
    assert len({one["id"] for one in PANELS}) == len({one["title"] for one in PANELS}) == len(PANELS)
