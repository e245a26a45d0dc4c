from mlm_pytorch.doctor.findings import EXAMPLE_CHARACTERS, Finding, by_gravity, level_of, shortened, worst


def test_levels():
    assert [level_of(value, 0.01, 0.1) for value in (0.0, 0.009, 0.01, 0.099, 0.1, 1.0)] == [
        "green", "green", "yellow", "yellow", "red", "red",
    ]  # fmt: skip
    assert level_of(1.0, 0.01, None) == "yellow"


def test_the_worst_comes_first():
    findings = [Finding(name, level, "", "") for name, level in (("a", "green"), ("b", "red"), ("c", "yellow"))]
    assert [f.check for f in by_gravity(findings)] == ["b", "c", "a"]
    assert worst(findings) == "red"
    assert worst([]) == "green"


def test_examples_are_short_and_show_the_place():
    assert shortened("short") == "short"
    long = "x" * 500 + "HERE" + "y" * 500
    shown = shortened(long, 500)
    assert "HERE" in shown
    assert len(shown) <= EXAMPLE_CHARACTERS + 2
