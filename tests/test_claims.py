"""Claims: margins computed by hand, and verdicts on results written by hand."""

import math

import pytest
from scipy import stats
from study import claims, published, tables
from study.claims import Claim, Difference

from grafit_jax.errors import UserError


def runs(**rows):
    """Returns a result for each seed of each row, given mAP in percent."""
    return [
        {"row": row, "seed": seed, "method": "grafit", "metrics": {"map": value / 100}, "config": {}, "run": {}}
        for row, values in rows.items()
        for seed, value in enumerate(values)
    ]


def test_a_difference_is_of_means_with_a_students_t_margin():
    claim = Claim("", "a", "b", ())
    found = claims.difference(runs(a=[10, 12, 14], b=[7], c=[1, 5]), claim, "map", "trunk")
    assert found.points == pytest.approx(5.0)
    # Squared deviations: 4 + 0 + 4 in a, none in b, 4 + 4 in c; 16 over 3 degrees of freedom. The t quantile for 3 is
    # 3.182, from a printed table.
    assert found.margin == pytest.approx(3.182 * math.sqrt(16 / 3) * math.sqrt(1 / 3 + 1), abs=2e-3)
    # For two rows it is the t test.
    two = claims.difference(runs(a=[10, 12, 14], b=[7, 8]), claim, "map", "trunk")
    interval = stats.ttest_ind([10, 12, 14], [7, 8]).confidence_interval(0.95)
    assert (two.points - two.margin, two.points + two.margin) == pytest.approx((interval.low, interval.high))
    # A run in two tables counts once.
    assert claims.difference(2 * runs(a=[10, 12, 14], b=[7, 8]), claim, "map", "trunk") == two
    assert claims.difference(runs(a=[1, 2]), claim, "map", "trunk") is None
    single = claims.difference(runs(a=[3], b=[1]), claim, "map", "trunk")
    assert single.points == pytest.approx(2.0) and math.isnan(single.margin) and not single.decided


def test_a_difference_is_taken_at_the_requested_layer():
    """Grafit's loss acts on its projector; cross-entropy without a projector acts on the trunk."""

    def run(row, method, seed, trunk, projector=None, headline="trunk"):
        metrics = {"map": trunk / 100} | ({} if projector is None else {"projector/map": projector / 100})
        if headline == "projector":
            metrics = {"trunk/map": trunk / 100, "map": projector / 100}
        features = ["trunk", "projector"] if headline == "trunk" else ["projector", "trunk"]
        config = {"eval.layers": features}
        return {"row": row, "seed": seed, "method": method, "metrics": metrics, "config": config, "run": {}}

    study = [
        run("grafit", "grafit", 0, 20, 31), run("grafit", "grafit", 1, 22, 33, headline="projector"),
        run("baseline", "baseline", 0, 25), run("baseline", "baseline", 1, 27),
        run("baseline_mlp", "baseline_mlp", 0, 24, 28), run("baseline_mlp", "baseline_mlp", 1, 24, 30),
    ]  # fmt: skip

    def points(behind, layer):
        found = claims.difference(study, Claim("", "grafit", behind, ()), "map", layer)
        return None if found is None else round(found.points, 6)

    assert {layer: points("baseline", layer) for layer in ("trunk", "projector", "own")} == {
        "trunk": -5.0, "projector": None, "own": 6.0,
    }  # fmt: skip
    assert (points("baseline_mlp", "trunk"), points("baseline_mlp", "projector")) == (-3.0, 3.0)
    # The noise at the projector is from rows with one: squared deviations 2 and 2 over 2 degrees of freedom.
    margin = claims.difference(study, Claim("", "grafit", "baseline_mlp", ()), "map", "projector").margin
    assert margin == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(4 / 2) * math.sqrt(1 / 2 + 1 / 2))


def test_the_summary_has_means_over_seeds_at_both_layers():
    def rows(method, trunk, projector, weight=1.0):
        config = {"loss.instance_weight": weight, "model.trunk": "resnet8"}
        keys = {"map": 0.0, "recall@1": 0.1, "knn_top1": 0.2}
        return [
            {"row": method, "seed": seed, "method": method, "config": config, "run": {}, "metrics": {
                **{key: value + more for key, more in keys.items()},
                **({} if projector is None else {f"projector/{key}": projector + more for key, more in keys.items()}),
            }} for seed, value in enumerate(trunk)
        ]  # fmt: skip

    recorded = {
        "study_omniglot": rows("grafit", (0.5, 0.52), 0.25) + rows("baseline", (0.4, 0.4), None),
        "study_cifar100": rows("grafit", (0.5,), 0.6),  # nothing to compare with
        "cifar100_gpu": rows("baseline", (0.3,), None) + rows("grafit_lambda_4", (0.35,), 0.4, 4.0),
    }
    assert claims.summary(recorded).splitlines()[2:] == [
        "| Omniglot, 30 → 964 | λ = 1 | 40.0 / 50.0 / 60.0 | 51.0 / 61.0 / 71.0 | 25.0 / 35.0 / 45.0 | 2 |",
        "| CIFAR-100, 20 → 100, 50 epochs of a ResNet-18 | λ = 4 | 30.0 / 40.0 / 50.0 | 35.0 / 45.0 / 55.0 "
        "| 40.0 / 50.0 / 60.0 | 1 |",
    ]
    assert claims.summary({}) == ""
    # A run that stands in two tables of a study counts once; a layer that was not evaluated has no value.
    twice = {
        "study_cifar100": rows("grafit", (0.5, 0.7), None) + rows("baseline", (0.3, 0.3), None),
        "study_ablations": rows("grafit", (0.5,), None),
    }
    assert claims.summary(twice).splitlines()[2:] == [
        "| CIFAR-100, 4 → 20 | λ = 1 | 30.0 / 40.0 / 50.0 | 60.0 / 70.0 / 80.0 | – / – / – | 2 |"
    ]


def test_verdicts():
    ahead, behind, unsure = Difference(2, 1), Difference(-2, 1), Difference(0.5, 1)
    assert not Difference(5, math.nan).decided
    for metrics, expected in (
        ((ahead, ahead), "**holds**"),
        ((ahead, unsure), "holds in x"),
        ((unsure, unsure), "undecided"),
        ((behind, behind), "**does not hold**"),
        ((unsure, behind), "does not hold in y"),
        ((ahead, behind), "holds in x; not in y"),
    ):
        assert claims.verdict(dict(zip("xy", metrics, strict=True))) == expected


def test_tables_of_one_study_must_be_of_the_same_images():
    def table(row, prints):
        run = {"data_fingerprint": {"train": prints, "test": "t"}}
        return [{"row": row, "seed": 0, "method": "grafit", "metrics": {"map": 0.1}, "config": {}, "run": run}]

    same = {"study_cifar100": table("grafit", "a"), "study_ablations": table("grafit_ema_off", "a")}
    assert "| A moving-average target helps: `grafit` − `grafit_ema_off` |" in claims.render(same)
    with pytest.raises(UserError, match="study_cifar100 and study_ablations: found results on different images"):
        claims.render(same | {"study_ablations": table("grafit_ema_off", "b")})


def test_every_claim_names_rows_of_its_studies_and_gets_a_verdict():
    for claim in (claim for group in claims.CLAIMS.values() for claim in group):
        for study in claim.studies:
            rows = {row.name for table in claims.STUDIES[study][1] for row in tables.TABLES[table].rows}
            assert {claim.ahead, claim.behind} <= rows, (claim, study)
    of_studies = {table for _, of_study in claims.STUDIES.values() for table in of_study}
    assert of_studies <= {*tables.at("cpu"), "cifar100_gpu"}
    # MaskCon's "Grafit" never stands for the paper's.
    assert published.METHOD not in {c.ahead for group in claims.CLAIMS.values() for c in group}

    text = claims.render({"study_omniglot": runs(grafit=[50, 51], baseline=[40, 41], snca_plus=[60, 61])})
    lines, claim = {}, ""
    for line in text.splitlines():
        if line.startswith("| ") and "Δ" not in line:
            first, study, layers = (cell.strip() for cell in line.split("|")[1:4])
            claim = first.partition(": ")[2] or claim  # the first line of a claim names it
            lines[claim, study, layers] = line
    # Squares 0.5 in each of three rows over 3 degrees of freedom: 3.182 * sqrt(0.5) * sqrt(1/2 + 1/2) = 2.25.
    line = lines["`grafit` − `baseline`", "Omniglot, 30 → 964", "trunk"]
    assert line.endswith("| +10.0 ± 2.3 | – | – | **holds** |")
    assert lines["`grafit` − `baseline`", "Omniglot, 30 → 964", "projector"].endswith("| – | – | – | not run |")
    assert lines["`grafit` − `snca_plus`", "Omniglot, 30 → 964", "trunk"].endswith(
        "| -10.0 ± 2.3 | – | – | **does not hold** |"
    )
    # A study without recorded results has no line.
    assert {study for _, study, _ in lines} == {"Omniglot, 30 → 964"}
