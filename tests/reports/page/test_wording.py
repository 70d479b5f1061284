from scratchdet_jax.reports.page.tables import percent


def test_percent_never_rounds_to_zero_or_all():
    shares = [0.0, 0.0004, 0.004, 0.31, 0.096, 0.996, 0.99996, 1.0, float("nan")]
    assert [percent(s) for s in shares] == [
        "0 %",
        "<0.1 %",
        "0.4 %",
        "31 %",
        "9.6 %",
        "99.6 %",
        ">99.9 %",
        "100 %",
        "–",
    ]
