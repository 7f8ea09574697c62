"""What a classifier's report adds: pictures of mistakes, and pages of many classes."""

import torch

from tasks.classification.digits import DigitsDataModule
from tasks.classification.mistakes import EvaluationRecord
from tasks.classification.report import classification_sections
from tasks.report.facts import RunFacts
from tasks.report.run import write_report


class FewPixels(torch.nn.Module):
    """A fixed linear classifier, which is wrong often."""

    def forward(self, images):
        return images.flatten(1)[:, :: images[0].numel() // 10][:, :10]


def test_pictures_of_mistakes(tmp_path):
    data = DigitsDataModule(image_size=16, batch_size=100)
    data.setup("test")
    record, network = EvaluationRecord(10), FewPixels()
    record.start("test")
    for images, labels, indices in data.test_dataloader():
        record.update(network(images), labels, indices)
    record.finish()
    write_report(tmp_path, RunFacts("classification", "x"), classification_sections(record.outcome, data))
    text = (tmp_path / "report.html").read_text()
    assert "could not be drawn" not in text
    right = int(record.outcome.confusion.trace())
    assert f"{len(data.labels_of('test'))} images, {len(data.labels_of('test')) - right} of them" in text
    first = record.outcome.mistakes[0]
    assert f"{first.true} → {first.predicted} ({first.probability:.2f})" in text
    name = data.sample_name("test", first.example)
    assert f'alt="example {name}: {first.true} taken for {first.predicted}"' in text


def test_a_thousand_classes_make_a_page_below_five_megabytes(tmp_path):
    generator = torch.Generator().manual_seed(0)

    class Noise:
        """Pictures that compress as badly as any."""

        def picture(self, split, index):
            return torch.randint(256, (3, 256, 256), generator=generator).to(torch.uint8)

        def class_name(self, index):
            return f"class {index} of many, with a long name"

        def sample_name(self, split, index):
            return f"{split}/{index}.JPEG"

    record = EvaluationRecord(1000)
    record.start("val")
    labels = torch.arange(5000).remainder(1000)
    record.update(torch.randn(5000, 1000, generator=generator), labels, torch.arange(5000))
    record.finish()
    write_report(tmp_path, RunFacts("classification", "x"), classification_sections(record.outcome, Noise()))
    page = tmp_path / "report.html"
    assert "could not be drawn" not in page.read_text()
    assert page.read_text().count("<img") == 12 + 10 * 4
    assert page.stat().st_size < 5e6


def test_nothing_evaluated_adds_nothing():
    assert classification_sections(None, None) == []
