"""How batches become losses, and what is recorded of each sample."""

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import UserError
from tasks.noisy_labels.co_teaching_learner import CoTeachingLearner
from tasks.noisy_labels.data import NoisyDigits, Relabelled
from tasks.noisy_labels.divide_mix_learner import DivideMixLearner
from tasks.noisy_labels.learners import ForwardLearner, LossLearner, evaluating, greater_share, heads
from tasks.noisy_labels.losses import CrossEntropy
from tasks.noisy_labels.methods import read_transition
from tasks.noisy_labels.mixing import Mixing
from tasks.noisy_labels.samples import SampleRecord
from tasks.noisy_labels.transition import ForwardCorrection, estimate_transition

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """The logits of sample n, whatever its image, which holds n."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, images):
        return self.logits[images.long().flatten()]


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# --- the record of the samples

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [1.0, 1.5, 0.0]])


def test_the_record_holds_loss_prediction_and_mean_suspicion():
    record = SampleRecord(5)
    record.add(torch.tensor(LOGITS), torch.tensor([0, 1, 0]), torch.tensor([3, 0, 2]))
    record.finish()
    log_p = log_softmax(LOGITS)
    own = np.array([log_p[0, 0], log_p[1, 1], log_p[2, 0]])
    # Computed in float32 here, in float64 there.
    np.testing.assert_allclose(record.loss[[3, 0, 2]], -own, rtol=1e-6)
    assert np.isnan(record.loss[[1, 4]]).all() and record.seen.tolist() == [True, False, True, True, False]
    assert record.predicted.tolist() == [2, -1, 1, 0, -1]
    p = np.exp(log_p)
    first = np.array([(1 - p[0, 0] + p[0, 1]) / 2, (1 - p[1, 1] + p[1, 2]) / 2, (1 - p[2, 0] + p[2, 1]) / 2])
    np.testing.assert_allclose(record.score[[3, 0, 2]], first, rtol=1e-6)
    assert record.score[1] == record.score[4] == 0
    # The second epoch, in which sample 3 is predicted otherwise and comes twice.
    again = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    record.add(again, torch.tensor([0, 0]), torch.tensor([3, 3]))
    record.finish()
    assert record.seen.tolist() == [False, False, False, True, False] and record.predicted[3] == 2
    q = np.exp(log_softmax(again.numpy()))
    third = [first[0], (1 - q[0, 0] + q[0, 1]) / 2, (1 - q[1, 0] + q[1, 2]) / 2]
    np.testing.assert_allclose(record.score[3], np.mean(third), rtol=1e-6)


def test_the_metrics_of_the_wrong_labels_by_hand():
    record = SampleRecord(5)
    given, true = np.array([0, 1, 2, 0, 1]), np.array([0, 1, 1, 2, 1])
    # Samples 0 to 3: right and fitted, right and not fitted, wrong and memorised, wrong and seen through.
    logits = torch.tensor([[5.0, 0, 0], [5.0, 0, 0], [0, 0, 5.0], [0, 0, 5.0]])
    chosen = torch.tensor([True, False, True, False])
    record.add(logits, torch.tensor(given[:4]), torch.arange(4), chosen)
    record.finish()
    values = record.metrics(given, true)
    assert (values["memorised"], values["clean_fit"]) == (0.5, 0.5)
    assert (values["selection_precision"], values["selection_recall"]) == (0.5, 0.5)
    # Losses, low l or high h: right l, h; wrong l, h: of four pairs one is right, one wrong, two are ties.
    assert values["noise_auroc_loss"] == values["noise_auroc_suspects"] == 0.5
    assert "selection_recall" not in _recorded(logits, given).metrics(given, true)


def _recorded(logits, given):
    record = SampleRecord(5)
    record.add(logits, torch.tensor(given[:4]), torch.arange(4))
    record.finish()
    return record


def test_a_loss_that_is_no_number_is_the_largest():
    logits = torch.tensor([[5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0], [torch.nan] * 3])
    given, true = np.array([0, 1, 2, 0, 1]), np.array([0, 1, 2, 1, 1])
    assert _recorded(logits, given).metrics(given, true)["noise_auroc_loss"] == 1.0


def test_a_record_goes_on_within_an_epoch():
    whole, first, second = (SampleRecord(3) for _ in range(3))
    for record in (whole, first):
        record.add(torch.tensor(LOGITS[:2]), torch.tensor([0, 1]), torch.tensor([2, 0]))
    second.load_state_dict(first.state_dict(), CPU)
    for record in (whole, second):
        record.add(torch.tensor(LOGITS[2:]), torch.tensor([0]), torch.tensor([1]))
        record.finish()
    left, right = whole.state_dict(), second.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    with pytest.raises(ValueError, match="expected 4 samples, got 3"):
        SampleRecord(4).load_state_dict(left, CPU)


# --- the learners


def test_the_greater_share_of_mixed_images():
    indices, partner = torch.arange(3), torch.tensor([2, 0, 1])
    assert greater_share(indices, None).tolist() == [0, 1, 2]
    assert greater_share(indices, Mixing(partner, 0.6)).tolist() == [0, 1, 2]
    assert greater_share(indices, Mixing(partner, 0.4)).tolist() == [2, 0, 1]


def test_evaluating_leaves_modes_and_statistics():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
    network[1].eval()
    with evaluating([network]):
        assert not network.training and not torch.is_grad_enabled()
        network(torch.full((4, 2), 7.0))
    assert network.training and network[0].training and not network[1].training
    assert network[0].num_batches_tracked == 0 and network[0].running_mean.tolist() == [0, 0]


def test_auxiliary_heads_count_by_their_weight():
    learner = LossLearner([nn.Identity()], 0.4, CrossEntropy())
    outputs = (torch.tensor(2.0), None, torch.tensor(3.0))
    assert float(learner.over_heads(outputs, lambda z: 10 * z)) == pytest.approx(20 + 0.4 * 30)
    assert [float(z) for z in heads(outputs)] == [2, 3]


def test_co_teaching_trains_each_on_the_choice_of_the_other():
    # Given label 0. The first is sure of samples 0 and 1, the second of 2 and 3.
    sure, unsure = [4.0, 0.0], [0.0, 4.0]
    first, second = Fixed([sure, sure, unsure, unsure]), Fixed([unsure, unsure, sure, sure])
    learner = CoTeachingLearner([first, second], 0.0, forget_rate=0.5, gradual_epochs=1)
    step = learner.step((torch.arange(4), torch.zeros(4, dtype=torch.int64), torch.arange(4)), epoch=1.5)
    assert step.selected_N.tolist() == [False, False, True, True]
    step.loss.backward()
    assert (first.logits.grad.abs().sum(dim=1) > 0).tolist() == [False, False, True, True]
    assert (second.logits.grad.abs().sum(dim=1) > 0).tolist() == [True, True, False, False]
    assert float(step.loss.detach()) == pytest.approx(2 * np.log(1 + np.exp(4)))


def losses_pass(images):
    """A pass over samples of label 0, without gradients as the real one."""
    return torch.no_grad()(
        lambda values_of: values_of(images, torch.zeros(len(images), dtype=torch.int64)).float()
    )


def test_divide_mix_divides_by_the_losses_of_the_other():
    generator = np.random.default_rng(0)
    low, high = generator.normal(5, 0.1, 20), generator.normal(-5, 0.1, 20)
    # Given label 0: the first network finds the first half right, the second network the other half.
    a, b = np.concatenate([low, high]), np.concatenate([high, low])
    zero = np.zeros(40)
    networks = [Fixed(np.stack([margin, zero], 1)) for margin in (a, b)]
    learner = DivideMixLearner(networks, 0.0, num_classes=2, warm_up=2)
    learner.start_epoch(1, losses_pass(torch.arange(40)))
    assert learner.clean is None  # the warm-up
    learner.start_epoch(2, losses_pass(torch.arange(40)))
    for_first, for_second = learner.clean
    assert (for_second[:20] > 0.99).all() and (for_second[20:] < 0.01).all()
    assert (for_first[:20] < 0.01).all() and (for_first[20:] > 0.99).all()
    again = DivideMixLearner(networks, 0.0, num_classes=2, warm_up=2)
    again.load_state_dict(learner.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(again.clean, learner.clean, strict=True))


def test_divide_mix_never_asks_for_the_label_of_an_unlabelled_sample():
    """Labels of samples below the threshold, weight 0 in the refinement, do not change the loss."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(3 * 4, 3)) for _ in range(2)]
    learner = DivideMixLearner(networks, 0.0, num_classes=3, warm_up=1, unlabelled_weight=25.0)
    clean = torch.tensor([1.0, 1.0, 0.0, 0.0])
    learner.clean = [clean, clean]
    views = torch.randn(4, 2, 3, 2, 2)
    losses = []
    for given in ([0, 1, 0, 0], [0, 1, 2, 1], [1, 1, 0, 0]):
        torch.manual_seed(1)
        step = learner.step((views, torch.tensor(given), torch.arange(4)), epoch=20.0)
        losses.append(float(step.loss.detach()))
    assert losses[0] == losses[1] != losses[2]


def test_a_matrix_is_estimated_once_after_the_warm_up():
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) * 2
    logits[7] = torch.nan  # an image that cannot be read
    network = Fixed(logits.tolist())
    learner = ForwardLearner([network], 0.0, ForwardCorrection(3), warm_up=2, percentile=90.0)
    learner.start_epoch(1, losses_pass(torch.arange(60)))
    assert not learner.has_matrix
    learner.start_epoch(2, losses_pass(torch.arange(60)))
    p = torch.softmax(logits[~logits.isnan().any(dim=1)], dim=1)
    expected = estimate_transition(p, 90.0)
    torch.testing.assert_close(learner.loss.log_transition_CC.exp(), expected)
    network.logits.data.zero_()
    learner.start_epoch(3, losses_pass(torch.arange(60)))
    torch.testing.assert_close(learner.loss.log_transition_CC.exp(), expected)
    again = ForwardLearner([network], 0.0, ForwardCorrection(3), warm_up=2)
    again.load_state_dict(learner.state_dict())
    assert again.has_matrix
    torch.testing.assert_close(again.loss.log_transition_CC.exp(), expected)


@pytest.mark.parametrize(
    ("name", "text"), [("t.csv", "0.9, 0.1\n0.2, 0.8\n\n"), ("t.yaml", "- [0.9, 0.1]\n- [0.2, 0.8]\n")]
)
def test_a_matrix_from_a_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_transition(str(path)) == [[0.9, 0.1], [0.2, 0.8]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n", "expected rows of numbers in"),
        ("1,0\n1\n", "expected rows of one length"),
        ("", "of one length"),
    ],
)
def test_a_bad_matrix_in_a_file(tmp_path, text, told):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        read_transition(str(path))


# --- the data


def test_views_are_augmented_each_and_carry_the_given_label():
    class Source:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.rand(3, 2, 2), 99  # a label that must not come out

    images, label = Relabelled(Source(), np.array([4, 5, 6]), views=2)[1]
    assert images.shape == (2, 3, 2, 2) and not torch.equal(images[0], images[1])
    assert label == 5
    assert Relabelled(Source(), np.array([4, 5, 6]))[2][0].shape == (3, 2, 2)


def test_the_pass_over_the_training_set_is_in_order_and_unaugmented():
    data = NoisyDigits(batch_size=64, image_size=8)
    data.setup("fit")
    data.prepare_labels(None)
    batches = list(data.training_pass())
    images, given, indices = (torch.cat([batch[i] for batch in batches]) for i in range(3))
    assert indices.tolist() == list(range(1168)) and given.tolist() == data.labels("train").tolist()
    again = torch.cat([batch[0] for batch in data.training_pass()])
    assert torch.equal(images, again) and data.true_labels is None
