"""What is counted of the messages between processes, and that EN sends no more than SyncBatchNorm."""

import pytest

from benchmarks import sync
from tests.benchmarks import sync_counts
from tests.family.rank_jobs import run_on_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(sync_counts.jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("kind", sync.KINDS)
def test_a_layer_sends_two_numbers_a_channel_each_way_and_its_count(ranks, kind):
    channels = sync_counts.CHANNELS
    for counted in ranks(kind):
        assert counted == {"forward": [4 * (2 * channels + 1)], "backward": [4 * 2 * channels]}
