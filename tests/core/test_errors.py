import pytest

from ovseg.core.errors import join_problems


@pytest.mark.parametrize(
    ("problems", "joined"),
    [
        (["a is bad"], "a is bad."),
        (["a is bad. Mend it."], "a is bad. Mend it."),
        (["a is bad. Mend it.", "b is bad. Mend it."], "a is bad; b is bad. Mend it."),
        (["a is bad. Mend it.", "b is no. Fill it."], "a is bad. Mend it. b is no. Fill it."),
        (["a is bad. Mend it.", "b\n"], r"a is bad. Mend it. b\n."),
        (
            [f"{n} is bad. Mend it." for n in range(7)],
            "0 is bad; 1 is bad; 2 is bad; 3 is bad; 4 is bad; and 2 more. Mend it.",
        ),
    ],
)
def test_advice_of_several_messages_is_given_once(problems, joined):
    assert join_problems(problems) == joined
