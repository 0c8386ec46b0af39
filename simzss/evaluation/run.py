"""`simzss eval`: a model on a benchmark, to `results.json` and a report."""

import json
import random
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from simzss import config as conf
from simzss.data.benchmark import Benchmark, BenchmarkConfig, Example
from simzss.errors import InputError
from simzss.evaluation.evaluate import evaluate, mask_writer
from simzss.evaluation.report import Curve, Overlay, Report, curves_from_csv, write_report
from simzss.models.folder import load_model
from simzss.segmentation.segmenter import Prediction, Protocol, Segmenter
from simzss.training.run import build_model
from simzss.visualize import overlay, side_by_side


def run_evaluation(config: DictConfig) -> dict[str, dict[str, Any]]:
    """Evaluate as configured; writes `results.json` and `report.html` into the output folder and returns the results.

    Raises:
        InputError: anything wrong with model, benchmark or configuration.
    """
    conf.require_complete(config)
    plain: dict[str, Any] = conf.to_plain(config)
    if plain["overlays"] < 0:
        raise InputError(f"overlays={plain['overlays']} must be at least 0")
    benchmark = Benchmark(BenchmarkConfig(**plain["benchmark"]))
    name = benchmark.config.name
    output = Path(plain["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    model, settings = load_model(plain["model"], plain["backbone"]["weights"])
    readout = plain["readout"] or settings["readout"]
    protocol = Protocol(**plain["protocol"])
    segmenter = Segmenter(model, protocol, readout, plain["precision"])
    pictures = OverlayCollector(name, benchmark, plain["overlays"])
    write_mask = mask_writer(output / "masks", benchmark.num_labels) if plain["save_masks"] else None

    def visit(example: Example, prediction: Prediction) -> None:
        pictures(example, prediction)
        if write_mask is not None:
            write_mask(example, prediction)

    results = {name: evaluate(segmenter, benchmark, visit)}
    if plain["compare_untrained"]:
        before = settings["untrained"]
        # The backbone that was just measured, wherever it lies now, not where it lay at training.
        weights = str(model.backbone.weights_file) if model.backbone.weights_file else before["backbone"]["weights"]
        untrained = build_model(before["backbone"] | {"weights": weights}, before["text"], before["seed"])
        untrained.feature_norm.load_state_dict(model.feature_norm.state_dict())
        results[f"{name}_untrained"] = evaluate(Segmenter(untrained, protocol, readout, plain["precision"]), benchmark)
    (output / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_report(output, plain["model"], model.backbone.name, results, pictures.drawn)
    return results


class OverlayCollector:
    """A visitor that draws some images of a benchmark, the same ones every time: photo, truth and prediction."""

    def __init__(self, name: str, benchmark: Benchmark, count: int) -> None:
        self.name = name
        self.chosen = set(random.Random(0).sample(benchmark.names, min(count, len(benchmark))))
        self.drawn: list[Overlay] = []

    def __call__(self, example: Example, prediction: Prediction) -> None:
        """Keep a drawing if the example is one of the chosen."""
        if example.name not in self.chosen:
            return
        names = prediction.class_names
        drawings: list[Image.Image] = [
            example.image,
            overlay(example.image, example.mask.numpy(), names),
            overlay(example.image, prediction.mask.numpy(), names),
        ]
        correct = prediction.mask == example.mask
        counted = example.mask != 255
        accuracy = 100 * float(correct[counted].float().mean()) if counted.any() else float("nan")
        picture = side_by_side(drawings, ["photo", "truth", "prediction"])
        self.drawn.append(Overlay(self.name, example.name, picture, f"{accuracy:.0f} % of the pixels that count"))


def _write_report(
    output: Path, model: str, backbone: str, results: dict[str, dict[str, Any]], overlays: list[Overlay]
) -> None:
    run = Path(model).parent
    curves: list[Curve] = curves_from_csv(run / "metrics.csv") if (run / "metrics.csv").is_file() else []
    baselines = {name: f"{name}_untrained" for name in results if f"{name}_untrained" in results}
    report = Report(
        title="Zero-shot segmentation",
        summary=[("model", model), ("backbone", backbone)],
        results=results,
        baselines=baselines,
        curves=curves,
        overlays=overlays,
        notes=["Scores are per cent, from one confusion matrix over all pixels of the benchmark."],
    )
    write_report(output / "report.html", report)
