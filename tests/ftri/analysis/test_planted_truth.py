"""Known distinctive experts under the confounds of the paper: which statistics recover them, and which do not.

The table below is the record. A row says for `--positions prompt` whether the top experts are the planted ones; `shared`
positions (the template's tokens) recover them under every confound and with every statistic.
"""

import pytest
import synthetic

from ftri.analysis.find import find
from ftri.analysis.findings import Findings, FindOptions, fold_summary
from ftri.analysis.resonance import STATISTICS
from ftri.traces.writer import write_traces

OTHER_EXPERTS = ((0, 5), (3, 9), (1, 20), (5, 30))
PLANS = {
    "nothing": synthetic.Plan(),
    # The class's prompts are longer, and some experts take nearly every token.
    "length": synthetic.Plan(busy_experts=OTHER_EXPERTS, extra_fillers=4),
    # The class is mostly one place, and some experts react to that place's name.
    "place": synthetic.Plan(place_experts=OTHER_EXPERTS, refusal_there=0.9, refusal_elsewhere=0.05),
}
RECOVERED = {
    "nothing": set(STATISTICS),
    "length": {"rate", "risk-difference", "npmi", "log-odds"},
    "place": {"welch"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {}
    for name, plan in PLANS.items():
        folders[name] = tmp_path_factory.mktemp("traces") / name
        write_traces(folders[name], synthetic.manifest(plan), synthetic.records(plan))
    return folders


def run(folder, statistic="paper", positions="prompt") -> Findings:
    options = FindOptions("refused", 4, statistic, positions, num_permutations=99, num_bootstraps=20)
    return find([folder], options)


def top(findings):
    return {(findings.maps.row_of(found.layer), found.expert) for found in findings.top}


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("confound", PLANS)
def test_each_statistic_recovers_the_planted_experts_or_is_known_not_to(folders, confound, statistic):
    found = top(run(folders[confound], statistic))
    planted = set(synthetic.BEHAVIOR_EXPERTS)
    if statistic in RECOVERED[confound]:
        assert found == planted
    else:
        assert found != planted and found & set(OTHER_EXPERTS), "a failure is due to the confound's experts"


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("confound", PLANS)
def test_shared_positions_recover_them_always(folders, confound, statistic):
    findings = run(folders[confound], statistic, "shared")
    assert top(findings) == set(synthetic.BEHAVIOR_EXPERTS)
    assert all(found.p_max_t <= 0.05 for found in findings.top)


def test_without_a_confound_there_is_nothing_to_be_careful_about(folders):
    findings = run(folders["nothing"])
    assert findings.warnings == []
    assert all(found.stability == 1 and found.q_benjamini_hochberg < 1e-6 for found in findings.top)
    assert findings.gap > 0.3


def test_the_length_confound_is_said_and_measured(folders):
    findings = run(folders["length"])
    assert [warning for warning in findings.warnings if warning.startswith("prompt length explains the ranking")]
    assert all(found.length_share > 0.8 for found in findings.top)
    assert not [warning for warning in run(folders["length"], "rate").warnings if "length" in warning]


def test_the_place_confound_is_said_and_measured(folders):
    findings = run(folders["place"])
    assert [warning for warning in findings.warnings if warning.startswith("token identity explains the ranking")]
    assert [warning for warning in findings.warnings if "without 'in Beijing' only 0%" in warning]
    place_tokens = {synthetic.FIRST_PLACE + 2, synthetic.FIRST_PLACE + 3}
    assert all(found.token_share > 0.9 and found.top_token in place_tokens for found in findings.top)
    assert fold_summary(findings.folds["time"])["lowest_overlap"] == 1.0
    shared = run(folders["place"], positions="shared")
    assert shared.warnings == [] and all(abs(found.token_share) < 0.05 for found in shared.top)
