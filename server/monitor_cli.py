"""`interlock monitor …`, `interlock sae …`, `interlock vector …`: the lab."""

import typer

from server.lab import vector
from server.lab.calibrate import calibrate
from server.lab.evaluate import evaluate
from server.lab.fit import fit
from server.lab.inspect import inspect
from server.lab.report import report
from server.lab.sae import check, convert
from server.lab.sae_fit import features
from server.lab.sae_fit import fit as sae_fit
from server.lab.vector_import import import_condition, import_vector
from server.lab.verify import verify

monitor_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""
From labelled conversations to a monitor that may be enforced, in four commands:

- `interlock monitor fit --data train.jsonl --name harm --out monitors/harm`

- `interlock monitor calibrate monitors/harm --data benign.jsonl`

- `interlock monitor verify monitors/harm --data test.jsonl`

- `interlock monitor report monitors/harm --data test.jsonl`
""",
)
sae_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Sparse autoencoders.")
vector_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Steering vectors.")

monitor_app.command("fit")(fit)
monitor_app.command("calibrate")(calibrate)
monitor_app.command("eval")(evaluate)
monitor_app.command("verify")(verify)
monitor_app.command("report")(report)
monitor_app.command("inspect")(inspect)
monitor_app.command("import")(import_condition)
sae_app.command("check")(check)
sae_app.command("convert")(convert)
vector_app.command("fit")(vector.fit)
vector_app.command("verify")(vector.verify)
vector_app.command("import")(import_vector)
sae_app.command("fit")(sae_fit)
sae_app.command("features")(features)
