"""The flags of every verb, described once.

Their definition, their help, and what is said of those that are missing, unknown or wrong are made
from this table (`flags.py`); a verb finds their values by name (`verbs.py`).
"""

import os
from pathlib import Path

from adadfq_jax.cli.flags import CONFIG, NAMES, OPTIONAL_CONFIG, Flag
from adadfq_jax.config.kinds import INTEGER, SWITCH

_CACHE = Flag(
    "cache",
    "DIR",
    "folder of compiled programs, empty for none",
    default=str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "adadfq_jax").expanduser()),
)
_JSON = Flag("json", "", "print one JSON object instead of tables", SWITCH, False)

# What a user states of a teacher, whose file may not say it.
_STATED = (
    Flag("architecture", "NAME", "name of the network, where the file leaves two open"),
    Flag(
        "mean",
        "R,G,B",
        "normalisation, three numbers with commas between, or a preset: imagenet, cifar10, "
        "cifar10-pytorchcv; by default the file's",
    ),
    Flag("std", "R,G,B", "the same; a preset given for one of both stands for both"),
    Flag("entry", "NAME", "which entry of a PyTorch checkpoint holds the weights"),
    Flag(
        "prefix",
        "NAME",
        "what stands before the names of the network's weights, such as backbone",
    ),
    Flag("image_size", "N", "side of the images in pixels", INTEGER),
    Flag(
        "pixel_units",
        "N",
        "what a white pixel is in the units of --mean and --std: 1, or 255, which divides both by "
        "255",
        INTEGER,
        1,
    ),
)


def _overwrite(what: str) -> Flag:
    return Flag("overwrite", "", f"replace {what}", SWITCH, False)


FLAGS: dict[str, tuple[Flag, ...]] = {
    "quantize": (
        CONFIG,
        Flag("workdir", "DIR", "folder of the run, where its files go", required=True),
        Flag(
            "distributed",
            "",
            "play with the other processes that are started so; on Cloud TPU and under Slurm this "
            "is enough, elsewhere give the next three",
            SWITCH,
            False,
        ),
        Flag("coordinator", "HOST:PORT", "address of process 0"),
        Flag("processes", "N", "how many there are", INTEGER, least=1),
        Flag("process", "N", "which one this is, from 0", INTEGER, least=0),
        _CACHE,
    ),
    "convert": (
        Flag(
            "input",
            "FILE",
            "a checkpoint file, or pytorchcv:NAME, torchvision:NAME, timm:NAME",
            required=True,
        ),
        Flag("output", "FILE", "the .safetensors file to write", required=True),
        *_STATED,
        _overwrite("an earlier file of this verb"),
    ),
    "evaluate": (
        Flag("teacher", "FILE", "a teacher's file"),
        Flag("workdir", "DIR", "instead of it, the folder of a run, whose student is measured"),
        Flag("model", "FILE", "instead of both, a file of `adadfq export`"),
        Flag(
            "engine",
            "ENGINE",
            "of an .onnx file: what runs it, onnxruntime (by default) or openvino",
        ),
        Flag(
            "source",
            "SOURCE",
            "the evaluation set: npz, folder, or tfds:NAME; by default the run's",
        ),
        Flag("path", "PATH", "its file or folder, or tensorflow-datasets' data_dir"),
        Flag("labels", "FILE", "of a folder: a file that says which class folder is which class"),
        Flag(
            "checkpoint",
            "STEP",
            "of a run: last (by default), best (the healthiest, chosen without data), or the "
            "number of a step",
        ),
        *_STATED,
        Flag(
            "bits",
            "BITS",
            "bit-widths such as w8a8,w4a4,w3a3: measure students of the teacher that are not "
            "trained",
            NAMES,
            [],
        ),
        Flag(
            "calibration",
            "N",
            "with --bits, real images that give ranges; 512 where it is not given",
            INTEGER,
            least=1,
        ),
        Flag(
            "epochs",
            "N",
            "with --bits, epochs of 200 steps of generated images that do; 4 where it is not given",
            INTEGER,
            least=1,
        ),
        Flag("batch_size", "N", "images at a time", INTEGER, 256, least=1),
        _JSON,
        _CACHE,
    ),
    "export": (
        Flag("workdir", "DIR", "the folder of the run"),
        Flag(
            "teacher",
            "FILE",
            "instead of it, a teacher's own file: in full precision, as onnx only",
        ),
        Flag(
            "output",
            "FILE",
            "the file to write: .safetensors (integers), .onnx, .stablehlo, .pth (pytorch)",
            required=True,
        ),
        Flag(
            "format",
            "FORMAT",
            "integers, onnx, stablehlo or pytorch; by default what the file's suffix says",
        ),
        Flag(
            "checkpoint",
            "STEP",
            "last, or the number of a step: of a run that is not finished, or an earlier one that "
            "is still kept; best, for the one of the highest data-free health score",
        ),
        _overwrite("an earlier exported student"),
        Flag(
            "form",
            "FORM",
            "onnx: integer, of which engines make integers, which is the default; or exact, which "
            "computes as the student does, in floating point, and is the default for a teacher",
        ),
        Flag(
            "storage",
            "TYPE",
            "onnx, integer form: of codes of up to 4 bits, int8 (by default) or uint4, of half the "
            "size, which needs opset 21",
        ),
        Flag("opset", "N", "onnx: by default the lowest that has what is used", INTEGER),
        Flag(
            "fold_norms",
            "",
            "onnx, exact form: fold BatchNorms into the convolutions before them",
            SWITCH,
            False,
        ),
        Flag(
            "raw_pixels",
            "",
            "onnx: take pixels in [0, 255] instead of normalised images",
            SWITCH,
            False,
        ),
        _CACHE,
    ),
    "benchmark": (
        OPTIONAL_CONFIG,
        Flag(
            "model",
            "FILE",
            "instead of it, an .onnx file of `adadfq export`: time its images a second, and tell "
            "which layers the engines compute in integers",
        ),
        Flag(
            "engine",
            "ENGINE",
            "of --model: onnxruntime or openvino; by default all that are installed",
        ),
        Flag(
            "threads",
            "N",
            "of --model: threads of an engine; all cores' by default",
            INTEGER,
            least=1,
        ),
        Flag("steps", "N", "steps, or calls of the model, in a round", INTEGER, 10, least=1),
        Flag("rounds", "N", "turns that all take", INTEGER, 5, least=1),
        Flag("parts", "", "also time the parts of a step", SWITCH, True),
        Flag(
            "against",
            "OPPONENT",
            "torch: PyTorch plays the paper's game in turns; with --model, the file of its teacher",
        ),
        Flag("profile", "DIR", "new folder for a trace of play"),
        _JSON,
    ),
    "precompile": (
        CONFIG,
        Flag(
            "topology",
            "NAME",
            "slices to compile for, such as v5e:4x4 or v5e:2x2,v5e:4x4",
            NAMES,
            [],
            required=True,
        ),
        _JSON,
    ),
    "sample": (
        Flag("workdir", "DIR", "the folder of the run", required=True),
        Flag(
            "output",
            "PATH",
            "FILE.npz, or FOLDER/ for one PNG an image and logits.npz",
            required=True,
        ),
        Flag("count", "N", "how many images", INTEGER, required=True),
        _overwrite("an earlier output"),
        _CACHE,
    ),
    "sweep": (
        CONFIG,
        Flag(
            "grid",
            "GRID",
            "fields and their values, 'FIELD=VALUE,VALUE;FIELD=LOWEST..HIGHEST', such as "
            "'bits=w3a3,w4a4;seed=0..4;game.method=gdfq,adadfq'",
            required=True,
        ),
        Flag("workdir", "DIR", "folder of the sweep, where its runs' folders go", required=True),
        Flag(
            "jobs",
            "N",
            "processes to play in, among which this machine's cores or accelerators are divided; 0 "
            "for one each",
            INTEGER,
            1,
            least=0,
        ),
        Flag("table", "", "end with the table", SWITCH, True),
        _CACHE,
    ),
    "report": (
        Flag("workdir", "DIR", "folder of a run, or of a sweep", required=True),
        _overwrite("an earlier report"),
        _CACHE,
    ),
}
