"""The accuracy model, and the intervals that measured scores have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.accuracy import predicted_accuracy_drop_pct
from hetrl.errors import UsageError
from hetrl.optimize.low_rank import low_rank_drop_pct
from hetrl.scoring.accuracy_model import AccuracyModel, Compressed
from hetrl.scoring.nonnegative import nonnegative_least_squares
from hetrl.scoring.results import Drop
from hetrl.scoring.statistics import Z, bootstrap, jackknife, paired_shares, student_t, wilson

ERROR_POINTS = 0.5


def drop(points: float) -> Drop:
    reach = Z * ERROR_POINTS
    return Drop(metric="top1", points=points, interval=(points - reach, points + reach), count=1000)


def anything(draw: np.random.Generator, stages: int) -> Compressed:
    kept = 1.0 if draw.random() < 0.5 else draw.uniform(0.2, 1)
    return Compressed(tuple(draw.uniform(0, 0.8, stages).tolist()), float(kept), bool(draw.integers(2)))


class Truth:
    """A network whose accuracy falls along an S-shaped curve, which is none of the model's own."""

    def __init__(self, draw: np.random.Generator, stages: int) -> None:
        self.sensitivity, self.steepness = draw.uniform(0.5, 1.5, stages), draw.uniform(6, 12)
        self.half, self.low_rank, self.int8 = draw.uniform(0.5, 0.9), draw.uniform(0, 15), draw.uniform(0, 2)

    def points(self, one: Compressed) -> float:
        far = float((np.array(one.prune_ratios) * self.sensitivity).mean())
        curve = 1 / (1 + np.exp(-self.steepness * (far - self.half))) - 1 / (1 + np.exp(self.steepness * self.half))
        return float(80 * curve + self.low_rank * (1 - one.low_rank_kept) ** 2 + self.int8 * one.int8)


def after(measured: int, stages: int, seed: int) -> tuple[AccuracyModel, list[Compressed], np.ndarray]:
    """A model after so many measurements, other settings, and their true drops."""
    draw = np.random.default_rng(seed)
    truth, model = Truth(draw, stages), AccuracyModel(stages)
    for _ in range(measured):
        one = anything(draw, stages)
        model = model.refined(one, drop(truth.points(one) + ERROR_POINTS * draw.standard_normal()))
    settings = [anything(draw, stages) for _ in range(30)]
    return model, settings, np.array([truth.points(one) for one in settings])


@pytest.mark.parametrize("stages", [1, 4])
def test_without_measurements_it_is_the_prediction(stages: int) -> None:
    model, ratios = AccuracyModel(stages), (0.0, 0.1, 0.3, 0.7)
    assert model.evidence == "predicted"
    found = model.expected([Compressed((ratio,), int8=int8) for ratio in ratios for int8 in (False, True)])
    predicted = [predicted_accuracy_drop_pct(ratio, int8=int8) for ratio in ratios for int8 in (False, True)]
    assert found.points == pytest.approx(predicted, abs=1e-3)
    assert model.expected([Compressed(low_rank_kept=0.4)]).points == pytest.approx([low_rank_drop_pct(0.4)], abs=1e-3)
    nothing = model.expected([Compressed()])
    assert (nothing.points, nothing.low, nothing.high) == (0, 0, 0)
    assert (found.high[1:] - found.low[1:] > 0.7 * found.points[1:]).all()  # one network's numbers say little of others


def test_intervals_hold_nine_of_ten_true_drops() -> None:
    inside: dict[int, list[float]] = {1: [], 4: []}
    for stages, shares in inside.items():
        for seed in range(30):
            for measured in (8, 20, 40):
                model, settings, true = after(measured, stages, seed)
                found = model.expected(settings)
                shares.append(((found.low <= true) & (true <= found.high)).mean())
    assert all(0.8 <= np.mean(shares) <= 0.99 for shares in inside.values())
    assert 0.85 <= np.mean(list(inside.values())) <= 0.97


@pytest.mark.parametrize("stages", [1, 4])
def test_errors_and_widths_fall_with_measurements(stages: int) -> None:
    errors, widths = [], []
    for measured in (0, 3, 10, 40):
        runs = [after(measured, stages, seed) for seed in range(15)]
        found = [(model.expected(settings), true) for model, settings, true in runs]
        errors.append(np.mean([np.abs(one.points - true).mean() for one, true in found]))
        widths.append(np.mean([(one.high - one.low).mean() for one, _ in found]))
    assert sorted(errors, reverse=True) == errors and errors[-1] < errors[0] / 2
    assert sorted(widths, reverse=True) == widths


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 12))
def test_drops_never_fall_where_compression_grows(seed: int, stages: int, measured: int) -> None:
    draw, model = np.random.default_rng(seed), AccuracyModel(stages)
    for _ in range(measured):  # nonsense, which must not turn a curve around
        model = model.refined(anything(draw, stages), drop(draw.uniform(-5, 60)))
    less = [anything(draw, stages) for _ in range(10)]
    more = [
        Compressed(
            tuple(min(0.9, ratio + draw.uniform(0, 0.3)) for ratio in one.prune_ratios), one.low_rank_kept * 0.8, True
        )
        for one in less
    ]
    small, large = model.expected(less), model.expected(more)
    assert (small.points <= large.points + 1e-9).all() and (small.points >= 0).all() and (large.points <= 100).all()
    assert (small.low <= small.points).all() and (small.points <= small.high).all()


def test_pruning_says_nothing_of_int8() -> None:
    model = AccuracyModel(1)
    before = model.expected([Compressed(int8=True)])
    for ratio in np.linspace(0.05, 0.7, 40):
        model = model.refined(Compressed((float(ratio),)), drop(predicted_accuracy_drop_pct(float(ratio))))
    found = model.expected([Compressed(int8=True), Compressed((0.2,))])
    assert model.evidence == "calibrated"
    assert found.high[1] - found.low[1] < 3
    assert found.high[0] - found.low[0] > 0.7 * float(before.high[0] - before.low[0])


def test_one_stage_teaches_less_of_another_than_of_itself() -> None:
    model = AccuracyModel(3).refined(Compressed((0.5, 0.0, 0.0)), drop(0.0))
    same, other = model.expected([Compressed((0.5, 0.0, 0.0)), Compressed((0.0, 0.5, 0.0))]).points
    blank = AccuracyModel(3).expected([Compressed((0.5, 0.0, 0.0))]).points[0]
    assert same < other < blank


def test_surprises_make_it_less_certain() -> None:
    settings = [Compressed((0.3,)), Compressed((0.6,))]
    calm, wild = AccuracyModel(1), AccuracyModel(1)
    for ratio, noise in ((0.2, 9), (0.2, -2), (0.4, 40), (0.4, 0)):
        calm = calm.refined(Compressed((ratio,)), drop(predicted_accuracy_drop_pct(ratio)))
        wild = wild.refined(Compressed((ratio,)), drop(predicted_accuracy_drop_pct(ratio) + noise))
    quiet, loud = calm.expected(settings), wild.expected(settings)
    assert (loud.high - loud.low > 1.5 * (quiet.high - quiet.low)).all()


def test_bad_settings() -> None:
    for make in (
        lambda: Compressed((1.0,)),
        lambda: Compressed((-0.1,)),
        lambda: Compressed((float("nan"),)),
        lambda: Compressed(()),
        lambda: Compressed(low_rank_kept=0.0),
        lambda: AccuracyModel(0),
        lambda: AccuracyModel(3).expected([Compressed((0.1, 0.2))]),
        lambda: AccuracyModel(3).refined(Compressed((0.1, 0.2)), drop(1)),
    ):
        with pytest.raises(UsageError):
            make()


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 8))
def test_nonnegative_least_squares_is_optimal(seed: int, columns: int, more: int) -> None:
    draw = np.random.default_rng(seed)
    matrix, right = draw.standard_normal((columns + more, columns)), draw.standard_normal(columns + more)
    found = nonnegative_least_squares(matrix, right)
    slope = matrix.T @ (matrix @ found - right)  # the Kuhn-Tucker conditions
    assert (found >= 0).all() and (slope >= -1e-7).all() and abs(slope @ found) < 1e-6


# ---- intervals of scores -------------------------------------------------------------------------------------------


def coverage(inside: list[bool]) -> float:
    return float(np.mean(inside))


def test_wilson() -> None:
    assert wilson(9, 10) == pytest.approx((0.6531, 0.9779), abs=2e-3)
    assert wilson(10, 10)[1] == 1 and wilson(0, 10)[0] == 0
    draw = np.random.default_rng(0)
    for share in (0.5, 0.97):
        bounds = [wilson(int(hits), 300) for hits in draw.binomial(300, share, 1000)]
        assert 0.86 <= coverage([low <= share <= high for low, high in bounds]) <= 0.94


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.01), (0.1, 0.02), (0.004, 0.004)])
def test_paired_shares(lost: float, won: float) -> None:
    draws = np.random.default_rng(0).multinomial(360, [lost, won, 1 - lost - won], 1000)
    bounds = [paired_shares(int(a), int(b), 360) for a, b, _ in draws]
    assert 0.86 <= coverage([low <= lost - won <= high for low, high in bounds]) <= 0.99


def test_bootstrap_and_jackknife() -> None:
    draw, inside, folded = np.random.default_rng(0), [], []
    for seed in range(120):
        sample = draw.exponential(2.0, 100)
        low, high = bootstrap(sample[:, None], lambda means: means[:, 0], seed)
        inside.append(low <= 2 <= high)
        fold = np.arange(100) % 20
        low, high = jackknife(float(sample.mean()), np.array([sample[fold != part].mean() for part in range(20)]))
        folded.append(low <= 2 <= high)
    assert 0.8 <= coverage(inside) <= 0.97 and 0.8 <= coverage(folded) <= 0.97
    values = draw.random((50, 1))
    assert bootstrap(values, lambda m: m[:, 0], 1) == bootstrap(values, lambda m: m[:, 0], 1)


def test_student() -> None:
    from scipy.special import stdtrit

    for freedom in (2, 3, 7.5, 19, 400):
        assert student_t(freedom) == pytest.approx(stdtrit(freedom, 0.95), rel=5e-3)
