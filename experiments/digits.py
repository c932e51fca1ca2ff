"""A small neural network learns to read the 1,797 digits that come with scikit-learn: nothing to download."""

import json

import repro_run

config = repro_run.config()
params, outputs = config.params, repro_run.outputs()
seed = repro_run.seed()

import matplotlib  # noqa: E402  below the seed, so that nothing can be drawn before it

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.metrics import ConfusionMatrixDisplay, log_loss  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402

images, labels = load_digits(return_X_y=True)
train_images, test_images, train_labels, test_labels = train_test_split(
    images / 16, labels, test_size=0.25, stratify=labels, random_state=seed
)

model = MLPClassifier(
    hidden_layer_sizes=(params.hidden,),
    batch_size=params.batch_size,
    learning_rate_init=params.learning_rate,
    random_state=seed,
)
history = []
for epoch in range(1, params.epochs + 1):
    model.partial_fit(train_images, train_labels, classes=range(10))
    history.append(
        {
            "loss": float(model.loss_),
            "accuracy": model.score(train_images, train_labels),
            "val_loss": float(log_loss(test_labels, model.predict_proba(test_images))),
            "val_accuracy": model.score(test_images, test_labels),
        }
    )
    repro_run.log(step=epoch, **history[-1])
    print(f"epoch {epoch}: loss {history[-1]['loss']:.4f}, test accuracy {history[-1]['val_accuracy']:.4f}", flush=True)

accuracy = history[-1]["val_accuracy"]
repro_run.log(step=params.epochs, test_accuracy=accuracy)
weights = {f"layer{n}/kernel": array for n, array in enumerate(model.coefs_)}
weights |= {f"layer{n}/bias": array for n, array in enumerate(model.intercepts_)}
results = {"test_accuracy": accuracy, "weights_sha256": repro_run.save_weights(weights), "history": history}
(outputs / "results.json").write_text(json.dumps(results, indent=2) + "\n")

figure, (curve, confusion) = plt.subplots(1, 2, figsize=(10, 4))
for name in ("accuracy", "val_accuracy"):
    curve.plot(range(1, params.epochs + 1), [point[name] for point in history], label=name)
curve.set(xlabel="epoch", ylabel="accuracy")
curve.legend()
ConfusionMatrixDisplay.from_estimator(model, test_images, test_labels, ax=confusion, cmap="Blues", colorbar=False)
figure.savefig(outputs / "digits.png", bbox_inches="tight", metadata={"Software": None})
print(f"test accuracy {accuracy:.4f}")
