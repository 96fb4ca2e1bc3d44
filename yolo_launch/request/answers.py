"""Holds the answers to options and commands that YOLOv5, ultralytics and torchrun have and this program has not."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.protocol import METRICS_FILE

_LOGS_TO_FILES = "this program logs to files and TensorBoard only"
_NO_EVOLUTION = "hyperparameters are not evolved here; try --hyp low, med or high, or --set name=value"
_NOTHING_UPLOADED = "nothing is ever uploaded"
TRAIN = {
    "--adam": "choose the optimizer by name: --optimizer Adam",
    "--artifact_alias": f"{_LOGS_TO_FILES}, so there are no Weights & Biases artifacts",
    "--bbox_interval": f"{_LOGS_TO_FILES}; pictures of boxes are in the run directory",
    "--bucket": f"{_NOTHING_UPLOADED}; copy the run directory instead",
    "--entity": f"{_LOGS_TO_FILES}, so there is no Weights & Biases entity",
    "--evolve": _NO_EVOLUTION,
    "--evolve_population": _NO_EVOLUTION,
    "--linear-lr": "linear decay is the default; --cos-lr asks for the cosine",
    "--local_rank": "workers get their rank from the environment; --gpus chooses the devices",
    "--log-artifacts": _LOGS_TO_FILES,
    "--log-imgs": f"{_LOGS_TO_FILES}; pictures are in the run directory",
    "--ndjson-console": f"use --json for one JSON object at the end, or read {METRICS_FILE} in the run directory",
    "--ndjson-file": f"{METRICS_FILE} in the run directory holds one JSON object a line",
    "--nohf": _NOTHING_UPLOADED,
    "--notest": "YOLOv5 calls it --noval now, and so does this program",
    "--quad": "the quad loader is not offered; --imgsz, --multi-scale and a larger --batch serve the same end",
    "--resume_evolve": _NO_EVOLUTION,
    "--save_dir": "--project and --name choose the run directory",
    "--upload_dataset": _NOTHING_UPLOADED,
}
_NO_TTA = "augmentation at test time is not offered; a larger --imgsz is the nearest thing"
_NO_DNN = "OpenCV's DNN module is not used; weights run in PyTorch"
VAL = {
    "--single-cls": "weights that were trained with it are measured so by themselves",
    "--augment": _NO_TTA,
    "--verbose": "every class stands in the table",
    "--save-txt": "yolo-launch predict --save-txt writes label files",
    "--save-hybrid": "labels and predictions are not mixed; yolo-launch predict --save-txt writes the predictions",
    "--save-conf": "yolo-launch predict --save-txt --save-conf writes them",
    "--save-json": "--coco-json FILE writes COCO's results",
    "--dnn": _NO_DNN,
}
PREDICT = {
    "--data": "class names come with the weights",
    "--agnostic-nms": "boxes of different classes never remove one another here",
    "--augment": _NO_TTA,
    "--visualize": "feature maps are not drawn",
    "--update": "weights are never changed by a prediction; yolo-launch weights --convert writes them anew",
    "--save-csv": "--json prints a line of JSON a picture, which a program reads as easily",
    "--line-thickness": "lines are as thick as suits the picture",
    "--hide-labels": "labels are always drawn; --nosave draws no pictures, and --save-txt writes numbers",
    "--hide-conf": "confidences are always drawn; --nosave draws no pictures, and --save-txt writes numbers",
    "--dnn": _NO_DNN,
    "--vid-stride": "every frame of a film is looked at",
}
EXPORT = {
    "--data": "class names come with the weights",
    "--inplace": "the exported graph is the same either way",
    "--keras": "Keras is not offered; --format onnx is read by most converters",
    "--optimize": "optimizing for mobiles is not offered; --format torchscript is what such tools start from",
    "--int8": "int8 is not offered; --half writes float16",
    "--simplify": "the graph is written without what simplifiers remove",
    "--train": "models are exported for inference",
    "--verbose": "a failure says what went wrong; --debug shows where",
    "--workspace": "TensorRT is not called here: trtexec builds an engine of the ONNX file",
    "--nms": "--with-nms puts non-maximum suppression into the graph",
    "--agnostic-nms": "--with-nms keeps the classes apart",
    "--topk-per-class": "--max-det limits the detections of an image",
    "--topk-all": "--max-det limits the detections of an image",
}
YOLOV5: Mapping[str, Mapping[str, str]] = {
    "train": TRAIN,
    "node": TRAIN,
    "plan": TRAIN,
    "doctor": TRAIN,
    "val": VAL,
    "predict": PREDICT,
    "export": EXPORT,
}
"""Options that YOLOv5 has or had and the command here has not, each with the way out, in YOLOv5's spelling."""

_MEETS_BY_ITSELF = "launchers meet by themselves, on several machines by yolo-launch node --rank R --master ADDRESS"
_LOGS = "each rank's output is in the run directory's logs, and rank 0's on the terminal"
TORCHRUN = {
    "--rdzv-backend": _MEETS_BY_ITSELF,
    "--rdzv-endpoint": _MEETS_BY_ITSELF,
    "--rdzv-id": _MEETS_BY_ITSELF,
    "--rdzv-conf": _MEETS_BY_ITSELF,
    "--local-addr": "a machine finds its address; NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name another interface",
    "--monitor-interval": "workers are looked at all the time",
    "--start-method": "workers are processes of their own, always",
    "--role": "all workers have one role",
    "--run-path": "a script runs as it does under python",
    "--log-dir": f"{_LOGS}; --project and --name choose it",
    "--redirects": _LOGS,
    "--tee": _LOGS,
    "--local-ranks-filter": _LOGS,
    "--logs-specs": _LOGS,
    "--log-line-prefix-template": _LOGS,
    "--duplicate-stdout-filters": _LOGS,
    "--duplicate-stderr-filters": _LOGS,
    "--event-log-handler": _LOGS,
    "--shutdown-timeout": "workers have 30 s to save after a SIGTERM, and 3 s to begin after Ctrl-C",
    "--signals-to-handle": "every signal that ends a program is passed on",
    "--numa-binding": "numactl before the command binds all of it",
}
"""Options of torchrun that have no meaning here, with hyphens, each with what there is instead."""
TORCHRUN_REFUSED = {
    "--no-python": "workers run in this program's Python: give it the script",
    "--virtual-local-rank": "each worker keeps its own LOCAL_RANK",
}
"""Those without which a script would not do what was asked."""

COMMANDS = {
    "detect": "yolo-launch predict --weights FILE PICTURES",
    "test": "yolo-launch val --weights FILE --data FILE.yaml",
    "validate": "yolo-launch val --weights FILE --data FILE.yaml",
    "benchmark": "yolo-launch val --weights FILE --data FILE.yaml",
    "benchmarks": "yolo-launch val --weights FILE --data FILE.yaml",
    "tune": "yolo-launch train --hyp med",
    "checks": "yolo-launch doctor",
    "settings": "yolo-launch --help",
    "hub": "yolo-launch weights FILE",
    "segment": "yolo-launch train --data FILE.yaml",
    "classify": "yolo-launch train --data FILE.yaml",
    "pose": "yolo-launch train --data FILE.yaml",
    "track": "yolo-launch predict --weights FILE FILM",
    "torchrun": "yolo-launch run SCRIPT.py ARGUMENTS",
    "launch": "yolo-launch run SCRIPT.py ARGUMENTS",
    "resume": "yolo-launch train --resume",
}
"""Commands of other programs, each with what does here what comes nearest to it."""
