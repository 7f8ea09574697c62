"""The report of a real fit, put together as the command line does it."""

import json
from dataclasses import replace

import pytest
from pytorch_lightning import Trainer

from tasks.classification.digits import DigitsDataModule
from tasks.classification.mistakes import EvaluationRecord
from tasks.classification.module import ClassificationModule
from tasks.classification.report import classification_sections
from tasks.loggers import MetricsCSV
from tasks.report.facts import collect_facts, read_summary
from tasks.report.meter import Meter
from tasks.report.run import write_report


class Recorded(ClassificationModule):
    """Keeps a record of its own of what its evaluations see."""

    def __init__(self):
        super().__init__(network="digits_resnet", norm="bn")
        self.seen = EvaluationRecord(10)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.seen.update(self(batch[0]), *batch[1:])

    test_step = validation_step

    def on_validation_epoch_start(self):
        super().on_validation_epoch_start()
        self.seen.start("val")

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.seen.finish()


@pytest.fixture
def fitted(tmp_path):
    folder = tmp_path / "classification" / "run"
    folder.mkdir(parents=True)
    trainer = Trainer(
        accelerator="cpu",
        logger=MetricsCSV(folder),
        callbacks=[Meter()],
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=2,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model, data = Recorded(), DigitsDataModule(image_size=16, batch_size=32)
    trainer.fit(model, datamodule=data)
    return folder, trainer, model, data


def test_report_of_a_fit(fitted):
    folder, trainer, model, data = fitted
    facts = collect_facts(folder, "classification", trainer, epochs=1, best=0.5, tested={})
    write_report(folder, facts, classification_sections(model.seen.outcome, data))
    assert facts == read_summary(folder)
    assert (facts.task, facts.name, facts.monitor, facts.test) == ("classification", "run", "val/top1", None)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    meter = trainer.callbacks[0]
    assert meter.images == 3 * 32 and 0 < meter.validating < meter.seconds
    assert facts.images_per_second == meter.images / (meter.seconds - meter.validating)
    page = (folder / "report.html").read_text()
    assert "could not be drawn" not in page
    assert "64 images, " in page, "the sanity check before training is not among them"
    top1 = float(trainer.callback_metrics["val/top1"])
    assert model.seen.outcome.confusion.trace() == round(64 * top1)
    for title in ("Loss", "Validation", "Learning rate", "Worst classes (validation)", "images/s"):
        assert title in page


def test_a_test_alone_keeps_what_training_measured(fitted):
    folder, trainer, _, _ = fitted
    trained = collect_facts(folder, "classification", trainer, epochs=1, best=0.5, tested={})
    write_report(folder, trained)
    trainer.callbacks = [Meter()]  # a later process, in which nothing was trained
    tested = collect_facts(folder, "classification", trainer, 1, None, {"test/top1": 0.25})
    assert tested == replace(trained, test={"test/top1": 0.25}, date=tested.date)
    assert json.loads((folder / "summary.json").read_text())["seconds"] == tested.seconds > 0
