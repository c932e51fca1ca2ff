"""A small convolutional network learns to read handwritten digits.

With `data=mnist` it trains on 60,000 digits and is tested on 10,000; with `data=mnist-t10k` the same code finds the
10,000 alone, trains on the first 8,000 and is tested on the last 2,000.
"""

import base64
import gzip
import html
import json
from pathlib import Path

import repro_run

config = repro_run.config()
repro_run.seed()

import keras  # noqa: E402  below the seed, so that nothing can be drawn before it
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLUE, ORANGE, GREY = "#2a6fbb", "#e07b39", "#6b7280"
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "font.size": 10, "figure.dpi": 110}
)


# data ------------------------------------------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """An array in the IDX format: two zeros, the type (8: bytes), the number of dimensions, their sizes, the values."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes")
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def load(folder: Path):
    """(images, labels) to train on, and to test on."""

    def part(name: str):
        images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
        return images[..., np.newaxis].astype("float32") / 255, labels.astype("int64")

    if (folder / "train-images-idx3-ubyte.gz").exists():
        return part("train"), part("t10k")
    images, labels = part("t10k")
    return (images[:8000], labels[:8000]), (images[8000:], labels[8000:])


# model -----------------------------------------------------------------------------------------------------------


def build(learning_rate: float, dropout: float) -> keras.Model:
    """Two convolutions, one hidden layer. The layers have names, so that their weights have."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv1"),
            keras.layers.MaxPooling2D(name="pool1"),
            keras.layers.Conv2D(32, 3, activation="relu", name="conv2"),
            keras.layers.MaxPooling2D(name="pool2"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dropout(dropout, name="dropout"),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ],
        name="mnist",
    )
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


# results ---------------------------------------------------------------------------------------------------------


def save_figure(figure, path: Path) -> None:
    """A PNG without the version of the software in it: equal pictures are equal files."""
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def draw_learning_curves(history: dict, path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
    epochs = range(1, len(history["loss"]) + 1)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        axes.plot(epochs, history[name], "o-", color=BLUE, label="training")
        axes.plot(epochs, history[f"val_{name}"], "o-", color=ORANGE, label="test")
        axes.set(title=name, xlabel="epoch", xticks=list(epochs))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    save_figure(figure, path)


def draw_confusion_matrix(matrix: np.ndarray, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5.2, 5.2))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)  # the root: a few errors in a thousand stay visible
    for row, column in np.ndindex(matrix.shape):
        if matrix[row, column]:
            shade = "white" if shares[row, column] > 0.4 else "#1f2937"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=shade, fontsize=8)
    axes.set(xlabel="read as", ylabel="is a", xticks=range(10), yticks=range(10))
    save_figure(figure, path)


def draw_mistakes(images: np.ndarray, labels: np.ndarray, chances: np.ndarray, path: Path, count: int = 16) -> None:
    """The wrong answers that the network was surest of."""
    answers = chances.argmax(axis=1)
    wrong = np.flatnonzero(answers != labels)
    surest = wrong[np.argsort(-chances[wrong, answers[wrong]], kind="stable")][:count]
    figure, panels = plt.subplots(2, count // 2, figsize=(9, 2.9))
    for axes in panels.flat:
        axes.axis("off")
    for axes, index in zip(panels.flat, surest, strict=False):  # there may be fewer
        axes.imshow(images[index, ..., 0], cmap="gray_r")
        axes.set_title(f"{labels[index]} read as {answers[index]}", fontsize=8, color=GREY)
    save_figure(figure, path)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 52rem; margin: 3rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2.2rem } p { color: #6b7280 }
img { max-width: 100%; height: auto } table { border-collapse: collapse; width: 100% }
td { padding: .35rem 0; border-bottom: 1px solid #e5e7eb }
td + td { text-align: right; font-variant-numeric: tabular-nums }
.big { font-size: 2.6rem; color: #2a6fbb; margin: .5rem 0 }
"""


def write_report(results: dict, folder: Path, path: Path) -> None:
    """One page that needs nothing beside it."""

    def picture(name: str, text: str) -> str:
        encoded = base64.b64encode((folder / name).read_bytes()).decode()
        return f'<h2>{text}</h2>\n<img alt="{text}" src="data:image/png;base64,{encoded}">'

    rows = {
        "test loss": f"{results['test_loss']:.4f}",
        "digits to train on": f"{results['train_digits']:,}",
        "digits to test on": f"{results['test_digits']:,}",
        "parameters of the network": f"{results['parameters']:,}",
        **config.params,
        "seed": config.seed,
        "weights, sha256": f"{results['weights_sha256'][:16]}…",
    }
    table = "\n".join(f"<tr><td>{html.escape(str(k))}<td>{html.escape(str(v))}" for k, v in rows.items())
    path.write_text(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(config.name)}</title><style>{STYLE}</style>
<h1>{html.escape(config.name)}</h1>
<p>{html.escape(config.description)}</p>
<div class="big">{results["test_accuracy"]:.2%}</div>
<p>of {results["test_digits"]:,} digits that it had never seen were read correctly.</p>
<table>{table}</table>
{picture("learning_curves.png", "Learning")}
{picture("confusion_matrix.png", "What was read as what")}
{picture("mistakes.png", "The surest mistakes")}
</html>
""",
        encoding="utf-8",
    )


def main() -> None:
    params, outputs = config.params, repro_run.outputs()
    (train_images, train_labels), (images, labels) = load(repro_run.data("mnist"))
    print(f"{len(train_images):,} digits to train on, {len(images):,} to test on", flush=True)

    model = build(params.learning_rate, params.dropout)
    history = model.fit(
        train_images,
        train_labels,
        batch_size=params.batch_size,
        epochs=params.epochs,
        validation_data=(images, labels),  # to look at: nothing is chosen by it
        callbacks=[repro_run.KerasCallback()],
        verbose=2,
    ).history

    chances = model.predict(images, batch_size=1000, verbose=0)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, chances.argmax(axis=1)), 1)
    results = {
        "test_accuracy": float(matrix.trace() / matrix.sum()),
        "test_loss": history["val_loss"][-1],
        "train_digits": len(train_images),
        "test_digits": len(images),
        "parameters": model.count_params(),
        "weights_sha256": repro_run.save_weights(model),
        "history": history,
        "confusion_matrix": matrix.tolist(),
    }
    repro_run.log(step=params.epochs, test_accuracy=results["test_accuracy"], test_loss=results["test_loss"])

    repro_run.save_model(model)
    (outputs / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    draw_learning_curves(history, outputs / "learning_curves.png")
    draw_confusion_matrix(matrix, outputs / "confusion_matrix.png")
    draw_mistakes(images, labels, chances, outputs / "mistakes.png")
    write_report(results, outputs, outputs / "report.html")
    print(f"test accuracy {results['test_accuracy']:.4f}", flush=True)


if __name__ == "__main__":
    main()
