"""Options and arguments that commands share; see :mod:`hpdlf.__main__`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

__all__ = [
    "AllowExternal",
    "AnyPrecision",
    "AnySolver",
    "Approver",
    "Batch",
    "BatchDim",
    "BatchPerDevice",
    "Bind",
    "Breakdown",
    "Budget",
    "Choose",
    "Clock",
    "Cluster",
    "Clusters",
    "Context",
    "Cut",
    "Data",
    "Database",
    "Devices",
    "Expert",
    "FixedData",
    "FixedMicrobatches",
    "FixedPipeline",
    "FixedSchedule",
    "Freeze",
    "Gantt",
    "HtmlOut",
    "InspectBatch",
    "Interleave",
    "Json",
    "Loss",
    "LossOutput",
    "MaxRestarts",
    "Microbatches",
    "Mixed",
    "Model",
    "ModelOrName",
    "Objective",
    "OnnxOut",
    "OnnxppOut",
    "Optimizer",
    "PictureOut",
    "Pipeline",
    "Plan",
    "PlanOut",
    "PowerLimit",
    "PowerPicture",
    "Precision",
    "Price",
    "Profile",
    "Ranks",
    "Recipe",
    "Recompute",
    "Region",
    "Resume",
    "Run",
    "RunOut",
    "Samples",
    "Schedule",
    "SequenceParallel",
    "Solver",
    "SynchroniseEvery",
    "Tensor",
    "Trace",
    "Train",
    "Versus",
    "WithoutWeights",
    "Yes",
    "Zero",
]

# What a command is about
Model = Annotated[Path, Argument(metavar="MODEL", help="An ONNX or ONNX++ file.", show_default=False)]
ModelOrName = Annotated[str, Argument(metavar="MODEL", help="An ONNX or ONNX++ file, or resnet50 (comes with onnx).")]
Plan = Annotated[Path, Argument(metavar="PLAN", help="A plan that `hpdlf plan` wrote.")]
Run = Annotated[Path, Argument(metavar="RUN", help="The folder of a run that `hpdlf train` made.")]
Profile = Annotated[str, Argument(metavar="NAME", help="A name of `hpdlf profile list`, NAME:NODES, or a TOML file.")]
Cluster = Annotated[
    str, Option("--on", metavar="CLUSTER", help="A name of `hpdlf profile list`, NAME:NODES, or a TOML file.")
]
Clusters = Annotated[str, Option("--on", metavar="A,B,...", help="Clusters, separated by commas.")]
Devices = Annotated[str, Option("--devices", metavar="N,M,...", help="Numbers of devices, separated by commas.")]
Database = Annotated[
    Path | None,
    Option("--database", metavar="FILE", help="Observations to learn from (default: $HPDLF_DATABASE, else your own)."),
]

# Importing
Loss = Annotated[
    str | None,
    Option("--loss", metavar="LOSS", help="softmax_xent, sigmoid_xent or mse: appended where the graph has no loss."),
]
LossOutput = Annotated[
    str | None, Option("--loss-output", metavar="NAME", help="The output that is the loss: one number.")
]
Train = Annotated[str | None, Option("--train", metavar="REGEX", help="Train only parameters whose names match.")]
Freeze = Annotated[str | None, Option("--freeze", metavar="REGEX", help="Do not train parameters whose names match.")]
BatchDim = Annotated[
    str | None, Option("--batch-dim", metavar="NAME|INPUT:AXIS", help="Which dimension is the batch (default: axis 0).")
]
Bind = Annotated[
    list[str] | None, Option("--bind", metavar="NAME=SIZE", help="Size of another symbolic dimension; repeatable.")
]
AllowExternal = Annotated[
    list[Path] | None,
    Option("--allow-external", metavar="DIR", help="Another folder that weights may lie in; repeatable."),
]
WithoutWeights = Annotated[
    bool, Option("--without-weights", help="Do without external weights that are not there: enough to simulate.")
]
InspectBatch = Annotated[int, Option("--batch", metavar="B", min=1, help="Samples to count for.")]

# Strategies
PARALLEL, MEMORY, HARDWARE = "Who computes what", "Memory and precision", "Hardware and its price"

Batch = Annotated[int, Option("--batch", metavar="B", min=1, help="Samples per optimiser update, over all ranks.")]
Data = Annotated[int, Option("--data", metavar="D", min=1, help="Replicas (data parallel).", rich_help_panel=PARALLEL)]
Pipeline = Annotated[
    int,
    Option("--pipeline", metavar="P", min=1, help="Ranks that a replica's stages lie on.", rich_help_panel=PARALLEL),
]
Tensor = Annotated[
    int,
    Option("--tensor", metavar="T", min=1, help="Ranks that share every large product.", rich_help_panel=PARALLEL),
]
Context = Annotated[
    int,
    Option("--context", metavar="C", min=1, help="Ranks that share every sample's sequence.", rich_help_panel=PARALLEL),
]
Expert = Annotated[
    int,
    Option(
        "--expert",
        metavar="E",
        min=1,
        help="Replicas that the experts of a mixture are dealt to.",
        rich_help_panel=PARALLEL,
    ),
]
SequenceParallel = Annotated[
    bool,
    Option("--sequence-parallel", help="Tensor ranks split the sequence between products.", rich_help_panel=PARALLEL),
]
Microbatches = Annotated[
    int | None,
    Option(
        "--microbatches",
        metavar="M",
        min=1,
        help="Parts of a replica's batch (default: one per rank of the pipeline).",
        rich_help_panel=PARALLEL,
    ),
]
Schedule = Annotated[str, Option("--schedule", help="1f1b, gpipe or zero_bubble.", rich_help_panel=PARALLEL)]
Interleave = Annotated[
    int, Option("--interleave", metavar="V", min=1, help="Stages on every rank, dealt round.", rich_help_panel=PARALLEL)
]
Cut = Annotated[
    str, Option("--cut", help="time or layers: what all stages have equally much of.", rich_help_panel=PARALLEL)
]
Solver = Annotated[str, Option("--solver", help="synchronous or asynchronous.")]
AnySolver = Annotated[str, Option("--solver", help="synchronous, asynchronous or local.", rich_help_panel=PARALLEL)]
SynchroniseEvery = Annotated[
    int,
    Option(
        "--synchronise-every",
        metavar="H",
        min=1,
        help="Steps after which local replicas average.",
        rich_help_panel=PARALLEL,
    ),
]
Zero = Annotated[
    int,
    Option(
        "--zero",
        metavar="0..3",
        min=0,
        max=3,
        help="What replicas share: 1 the optimiser's state, 2 gradients too, 3 parameters too.",
        rich_help_panel=MEMORY,
    ),
]
Recompute = Annotated[
    str,
    Option("--recompute", help="Computed again instead of kept: none, selective or full.", rich_help_panel=MEMORY),
]
Mixed = Annotated[
    bool,
    Option("--mixed", help="Gradients and a copy of 16-bit parameters in float32.", rich_help_panel=MEMORY),
]
AnyPrecision = Annotated[
    str | None,
    Option(
        "--precision",
        help="float64, float32, tf32, bfloat16, float16 or float8 (default: float32).",
        rich_help_panel=MEMORY,
    ),
]
Precision = Annotated[
    str | None,
    Option("--precision", help="float64, float32, tf32, bfloat16 or float16 (default: the recipe's, float32)."),
]
Optimizer = Annotated[str, Option("--optimizer", help="sgd, momentum, adam, ...: decides the memory of its state.")]
Samples = Annotated[int | None, Option("--samples", metavar="N", min=1, help="Samples of an epoch, for its figures.")]
BatchPerDevice = Annotated[int, Option("--batch-per-device", metavar="B", min=1, help="Samples per device and step.")]
FixedData = Annotated[int | None, Option("--data", metavar="D", min=1, help="Fix the number of replicas.")]
FixedPipeline = Annotated[int | None, Option("--pipeline", metavar="P", min=1, help="Fix the number of stages.")]
FixedMicrobatches = Annotated[
    int | None, Option("--microbatches", metavar="M", min=1, help="Fix the number of microbatches.")
]
FixedSchedule = Annotated[str | None, Option("--schedule", help="Fix the schedule: 1f1b or gpipe.")]

# What if the hardware were set or paid otherwise
PowerLimit = Annotated[
    float | None,
    Option(
        "--power-limit",
        metavar="W",
        help="Cap every device at so many watts.",
        show_default=False,
        rich_help_panel=HARDWARE,
    ),
]
Clock = Annotated[
    float | None,
    Option(
        "--clock", metavar="MHZ", help="Run every device at this clock.", show_default=False, rich_help_panel=HARDWARE
    ),
]
Price = Annotated[
    str | None,
    Option(
        "--price",
        metavar="KIND",
        help="on_demand, spot or own (default: the cluster's choice).",
        rich_help_panel=HARDWARE,
    ),
]
Region = Annotated[
    str | None,
    Option("--region", metavar="NAME", help="Electricity of another region, such as sweden.", rich_help_panel=HARDWARE),
]

# Planning, approving and running
Objective = Annotated[str, Option("--objective", help="time, energy or cost.")]
Recipe = Annotated[
    Path | None, Option("--recipe", metavar="TOML", help="The training: data, optimiser, length, evaluation.")
]
Ranks = Annotated[int | None, Option("--ranks", metavar="N", min=1, help="Only strategies with so many ranks.")]
Choose = Annotated[int, Option("--choose", metavar="N", help="Take the N-th of the ranking.")]
MaxRestarts = Annotated[int, Option("--max-restarts", metavar="N", min=0, help="Restarts allowed when a rank dies.")]
Approver = Annotated[
    str | None, Option("--as", metavar="NAME", help="Who approves (default: the login name).", show_default=False)
]
Yes = Annotated[bool, Option("--yes", help="Approve without being asked.")]
Resume = Annotated[bool, Option("--resume", help="Go on from the last checkpoint in RUN.")]
Budget = Annotated[float, Option("--budget", metavar="SECONDS", min=10, max=170, help="Time to measure for.")]

# What is written
OnnxppOut = Annotated[Path, Option("-o", "--out", metavar="FILE", help="The ONNX++ file to write.")]
OnnxOut = Annotated[Path, Option("-o", "--out", metavar="FILE", help="The ONNX file to write.")]
PlanOut = Annotated[Path, Option("-o", "--out", metavar="PLAN", help="The plan to write (.json).")]
RunOut = Annotated[Path, Option("--out", metavar="RUN", help="Folder of the run.")]
HtmlOut = Annotated[Path, Option("-o", "--out", metavar="FILE", help="The page to write (.html).")]
PictureOut = Annotated[Path | None, Option("-o", "--out", metavar="FILE", help="Draw it (.png, .svg, .pdf).")]
Trace = Annotated[
    Path | None, Option("--trace", metavar="FILE", help="Write the timeline for ui.perfetto.dev (.json).")
]
Gantt = Annotated[Path | None, Option("--gantt", metavar="FILE", help="Draw the timeline (.png, .svg, .pdf).")]
Breakdown = Annotated[bool, Option("--breakdown", help="Show what the step's time goes to, and its critical path.")]
Versus = Annotated[
    str | None,
    Option(
        "--versus",
        metavar="FIELDS",
        help="Say why a variant is slower or faster: what differs, such as 'data=2,pipeline=4' or 'on=dgx-h100'.",
    ),
]
PowerPicture = Annotated[
    Path | None, Option("--power", metavar="FILE", help="Draw watts through a step (.png, .svg, .pdf).")
]
Json = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]
