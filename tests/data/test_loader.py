"""Workers that die are replaced; what a data set raises ends the loader."""

import pytest
import torch

from t2i.data.loader import MicroBatches, loader

BATCHES = MicroBatches(batch_size=2, micro_batch_size=2, first_step=0, last_step=4)


class Positions:
    """A data set whose examples are their own positions."""

    def __getitems__(self, positions):
        return positions

    def finish(self, batch):
        return batch


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()], ids=repr)
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_replaced(error, monkeypatch, caplog):
    """The process that waits for the batch then sees a connection that ends."""
    errors = [error]

    class Loader(torch.utils.data.DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                if batch == [4, 5] and errors:
                    raise errors.pop()
                yield batch

    monkeypatch.setattr(torch.utils.data, "DataLoader", Loader)
    assert list(loader(Positions(), BATCHES, 0)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert "a data-loader worker died" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("error", [ConnectionError, RuntimeError])
def test_what_a_data_set_raises_in_a_worker_is_raised(error, tmp_path):
    class Failing(Positions):
        def __getitems__(self, positions):
            (tmp_path / "attempts").open("a").write("x")
            raise error("no answer")

    with pytest.raises(error, match="no answer"):
        list(loader(Failing(), BATCHES, 1))
    assert len((tmp_path / "attempts").read_text()) <= len(BATCHES)  # which one worker prefetches


def test_a_loader_takes_nothing_from_torchs_stream_but_at_the_start_of_a_run():
    """Or the dropout of the step in which it is made would be another than in a run that was not interrupted."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    next(loader(Positions(), MicroBatches(batch_size=2, micro_batch_size=2, first_step=3, last_step=4), 0))
    assert torch.equal(torch.rand(1), expected)
