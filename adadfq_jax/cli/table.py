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
    # JAX's own variable, where it is set; else a folder of the user's cache.
    default=os.environ.get("JAX_COMPILATION_CACHE_DIR")
    or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "adadfq_jax").expanduser()),
)
_JSON = Flag("json", "", "print one JSON object instead of tables", SWITCH, False)

# What a user states of a teacher, whose file may not say it.
_STATED = (
    Flag("architecture", "NAME", "name of the network, where the file leaves two open"),
    Flag(
        "mean",
        "R,G,B",
        "normalisation, a number for each channel or one for all, or a preset: imagenet, cifar10, "
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
        "resize",
        "N",
        "side to which image files are resized before the centre of image_size is cut out",
        INTEGER,
    ),
    Flag("interpolation", "NAME", "how: nearest, box, bilinear, hamming, bicubic or lanczos"),
    Flag("crop", "HOW", "center (the shorter side is resized) or squash (both sides are)"),
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
            "dry_run",
            "",
            "check configuration, teacher, images and workdir, tell what would be done, and end",
            SWITCH,
            False,
        ),
        Flag(
            "distributed",
            "",
            "share the run with the other processes that are started so; on Cloud TPU and under "
            "Slurm this is enough, elsewhere give the next three",
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
        Flag(
            "network",
            "FILE.py:FUNCTION",
            "your function without arguments (or package.module:function) that returns the network "
            "of the input's weights, a torch.nn.Module; it is run",
        ),
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
            "bit-widths such as w8a8,w4a4,w3a3, or w4a4@bits.json with those of `adadfq allocate`: "
            "measure students of the teacher, or of the run's, that are not trained",
            NAMES,
            [],
        ),
        Flag(
            "ranges",
            "RULE",
            "with --bits, how ranges follow from images: minmax (where it is not given) or "
            "least_error",
        ),
        Flag(
            "calibration",
            "N",
            "with --bits, images of a kind that give ranges; 512 where it is not given",
            INTEGER,
            least=1,
        ),
        Flag(
            "epochs",
            "N",
            "with --bits, epochs of 200 steps that train a generator, which a run has; 4 where not "
            "given",
            INTEGER,
            least=1,
        ),
        Flag(
            "quick",
            "",
            "with --bits, ranges from procedural images, which are drawn by a formula: nothing is "
            "trained",
            SWITCH,
            False,
        ),
        Flag("batch_size", "N", "images at a time", INTEGER, 256, least=1),
        _JSON,
        _CACHE,
    ),
    "allocate": (
        Flag("teacher", "FILE", "a teacher's file", required=True),
        Flag(
            "budget",
            "BUDGET",
            "average bits, such as 4.0 (of --measure=bitops: as many bit operations as a student "
            "of so many bits everywhere); or 170kB, of the student's packed numbers; or 650M, bit "
            "operations of an image",
            required=True,
        ),
        Flag(
            "budget_of",
            "WHAT",
            "what gets bits: weights, activations or both, each within average bits; by default "
            "both, or weights where the budget is in bytes",
        ),
        Flag("measure", "NAME", "what the budget bounds: size or bitops", default="size"),
        Flag("choices", "BITS", "bit-widths to choose from", NAMES, list("234568")),
        Flag("output", "FILE", "the .json file to write, with a picture beside it", required=True),
        Flag(
            "fixed",
            "OVERRIDES",
            "what has its bits already, such as @first=w8a8,@last=w8; the budget includes it",
            NAMES,
            [],
        ),
        Flag(
            "groups",
            "NAMES",
            "which layers share bits: sums (the quantized inputs of each sum), depthwise (a "
            "depthwise convolution and the one before it)",
            NAMES,
            [],
        ),
        Flag("sums", "", "for a student of quant.sums=True", SWITCH, False),
        Flag("images", "N", "images of each kind to measure with", INTEGER, 64, least=1),
        Flag("epochs", "N", "epochs of 200 steps that train a generator", INTEGER, 4, least=1),
        Flag(
            "quick",
            "",
            "measure with procedural images only, which are drawn by a formula: nothing is trained",
            SWITCH,
            False,
        ),
        Flag(
            "checks",
            "N",
            "random allocations on which the sum of the layers' distances is compared with that of "
            "the whole",
            INTEGER,
            20,
            least=0,
        ),
        Flag(
            "play",
            "EPOCHS",
            "also train a student of the chosen bits and one of uniform bits within the budget, "
            "for so many epochs, and tell which kept more",
            INTEGER,
            least=2,
        ),
        Flag("source", "SOURCE", "of --play, images to measure on: npz, folder, or tfds:NAME"),
        Flag("path", "PATH", "their file or folder, or tensorflow-datasets' data_dir"),
        Flag("labels", "FILE", "of a folder: a file that says which class folder is which class"),
        *_STATED,
        _overwrite("an earlier file of this verb"),
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
            "onnx, exact form: fold BatchNorms into the convolutions before them, as the integer "
            "form always does",
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
            "torch: PyTorch takes the paper's steps in turns; with --model, its teacher's file",
        ),
        Flag("profile", "DIR", "new folder for a trace of steps in which both networks learn"),
        _JSON,
    ),
    "precompile": (
        CONFIG,
        Flag(
            "topology",
            "NAME",
            "GPUs, such as h100 or h100:1x8, or slices of TPUs, such as v5e:4x4, to compile for",
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
            "processes to train in, among which this machine's cores or accelerators are divided; "
            "0 for one each",
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
    "measure": (
        Flag(
            "output", "DIR", "folder of what is measured, which measured.json holds", required=True
        ),
        Flag(
            "minutes",
            "N",
            "time for all of it; what would take longer is left out, and measured by a later call. "
            "By default any time; 0 only prints the tables",
            INTEGER,
            least=0,
        ),
        Flag("teacher", "FILE", "a file of `adadfq convert`, for whole runs of its network"),
        Flag(
            "images", "PATH", "their evaluation images: a .npz file, or a folder of class folders"
        ),
        Flag("platform", "NAME", "cpu, gpu or tpu; by default what JAX finds"),
        Flag(
            "parts",
            "NAMES",
            "which to measure, such as speed_16,speed_64; by default all, and --dry-run names them",
            NAMES,
            [],
        ),
        Flag(
            "workdir",
            "DIR",
            "folder of the runs, from which a later call goes on; by default OUTPUT_runs",
        ),
        Flag(
            "rehearse",
            "",
            "measure the same with small networks for a few steps, to see whether it works",
            SWITCH,
            False,
        ),
        Flag("dry_run", "", "tell what would be measured, and how long it takes", SWITCH, False),
        Flag("commit", "NAME", "of the source, to note where git cannot tell it"),
    ),
}

# One command for each verb, without its name.
EXAMPLES = {
    "quantize": "--config=digits_resnet20:w4a2 --workdir=runs/digits",
    "convert": "--input=resnet20.th --output=resnet20.safetensors "
    "--architecture=resnet20_cifar --mean=imagenet --std=imagenet",
    "evaluate": "--workdir=runs/digits --source=npz --path=test.npz",
    "allocate": "--teacher=resnet20.safetensors --budget=4.0 --output=bits.json",
    "export": "--workdir=runs/digits --output=student.onnx",
    "benchmark": "--config=cifar10_resnet20:w4a4 --steps=20",
    "precompile": "--config=cifar10_resnet20:w4a4 --topology=h100,v5e:2x2",
    "sample": "--workdir=runs/digits --count=1000 --output=images/",
    "sweep": "--config=digits_resnet20 --workdir=runs/sweep --grid='bits=w3a3,w4a4;seed=0..4'",
    "report": "--workdir=runs/digits",
    "measure": "--output=runs/measured --minutes=10",
}
