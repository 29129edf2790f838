import pytest

from vmae_jax.errors import SettingError
from vmae_jax.weights.class_order import check_class_order


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({0: "cat", 1: "dog"}, ("cat", "dog")),
        ({1: "dog", 0: "cat"}, ["cat", "dog"]),  # the numbers count, not the order of the mapping
        ({0: "LABEL_0", 1: "LABEL_1"}, ("cat", "dog")),
        ({0: "cat", 1: "dog"}, ()),
        ({}, ("cat",)),
    ],
)
def test_the_same_names_or_none_pass(theirs, ours):
    check_class_order("a/model", theirs, ours)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (("cat", "dog", "cow"), ("cat", "cow", "dog"),
         "'a/model' has the data's classes in another order: class 1 is 'dog' there and 'cow' in "
         "the data, class 2 is"),
        (("cat", "dog"), ("cat", "Dog"), "is for other classes: class 1 is 'dog' there and 'Dog'"),
        (("cat", "dog"), ("cat",), "other classes: it has 2 classes, the data 1. Start"),
        (("cat", "dog"), ("cow", "dog", "ox"),
         "it has 2 classes, the data 3; class 0 is 'cat' there and 'cow' in the data. Start"),
        (("LABEL_0", "LABEL_2"), ("cat", "dog"), "class 0 is 'LABEL_0' there"),
        (tuple("abcdef"), tuple("fabcde"), "class 2 is 'c' there and 'b' in the data, ..."),
    ],
)  # fmt: skip
def test_other_names_and_other_orders_are_told_apart(theirs, ours, message):
    with pytest.raises(SettingError) as error:
        check_class_order("a/model", dict(enumerate(theirs)), ours)
    assert message in str(error.value)
