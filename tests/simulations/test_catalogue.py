import subprocess
import sys

import pytest

from simulations.catalogue import find, names
from simulations.errors import ParameterError, ScenarioError


def test_every_scenario_that_ships_is_found_and_says_what_it_shows():
    shipped = {name: find(name) for name in names()}
    assert {"bootstrap", "dht-churn", "mass-failure", "partition-heal"} <= set(shipped)
    for name, scenario in shipped.items():
        assert scenario.name == name
        assert scenario.summary
        assert scenario.resolve({}) == {k: p.default for k, p in scenario.parameters.items()}
        assert all(parameter.help for parameter in scenario.parameters.values())


def test_a_name_that_is_none_is_answered_with_the_nearest():
    with pytest.raises(ScenarioError, match="did you mean 'bootstrap'"):
        find("boot-strap")


def test_a_python_file_is_a_scenario(toy):
    assert find(toy).name == "toy"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\ny = nothing", "fails in line 2: NameError"),
        ("x = 1", "defines no SCENARIO"),
        ("import does_not_exist", "ModuleNotFoundError"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_python_file_that_is_none_is_refused_in_a_sentence(tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=says):
        find(str(path))


def test_a_toml_file_names_its_base_and_sets_parameters(tmp_path, toy):
    (tmp_path / "slow.toml").write_text(
        'base = "./toy.py"\nsummary = "slowly"\nfidelity = "full"\n[parameters]\npause = 9\n'
    )
    scenario = find(str(tmp_path / "slow.toml"))
    assert (scenario.name, scenario.summary) == ("slow", "slowly")
    assert scenario.fidelities == ("full", "light")
    assert scenario.resolve({"least": "0.5"}) == {"pause": 9.0, "least": 0.5, "fails": -1}


def test_a_toml_file_may_group_parameters_by_what_stands_before_the_dot(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "dht-churn"\n[parameters.churn]\nmedian = 600\n')
    assert find(str(path)).resolve({})["churn.median"] == 600.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base = ", "cannot be read"),
        ("[parameters]", "no key base"),
        ('base = "bootstrap"\nparam = 1', "no key 'param'"),
        ("base = 3", "base must be a text"),
        ('base = "bootstrap"\nfidelity = "ful"', "did you mean 'full'"),
        ('base = "mine.toml"', "based on too many"),
        ('base = "../none.py"', "no scenario file"),
    ],
)
def test_a_toml_file_that_is_none_is_refused_in_a_sentence(tmp_path, text, says):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=says):
        find(str(path))


@pytest.mark.parametrize("line", ["node = 3", "nodes = 'many'", "[parameters.nodes]\nx = 1"])
def test_a_toml_file_cannot_set_what_its_base_does_not_take(tmp_path, line):
    path = tmp_path / "mine.toml"
    path.write_text(f'base = "bootstrap"\n[parameters]\n{line}\n')
    with pytest.raises(ParameterError):
        find(str(path))


def test_looking_for_the_scenarios_imports_no_torch():
    code = (
        "import sys; from simulations.catalogue import find, names; "
        "[find(each) for each in names()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
