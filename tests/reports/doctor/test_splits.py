from scratchdet_jax.reports.doctor.splits import overlaps


def test_overlaps_distinguish_unions_from_leaks():
    splits = {"train": {1, 2, 3}, "val": {4, 5}, "trainval": {1, 2, 3, 4, 5}, "test": {5, 6}}
    found = {(o.first, o.second): (o.shared, o.contained, o.by_design) for o in overlaps(splits)}
    assert found == {
        ("train", "trainval"): (3, "first", True),
        ("val", "trainval"): (2, "first", True),
        ("val", "test"): (1, "", False),
        ("trainval", "test"): (1, "", False),
    }


def test_a_split_inside_a_larger_one_is_a_leak():
    (found,) = overlaps({"train": {1, 2, 3}, "val": {2, 3}})
    assert (found.contained, found.by_design) == ("second", False)
    (found,) = overlaps({"a": {1}, "b": {1}})
    assert (found.contained, found.by_design) == ("both", False)
