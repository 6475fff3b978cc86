# The plan of the run, and the guards around it. Nothing heavy is imported here, because every job on a cluster reads
# this file again.

import os
import sys

from snakemake.exceptions import WorkflowError

SCRIPTS = os.path.join(workflow.basedir, "workflow", "scripts")
sys.path.append(SCRIPTS)

import saelineage

if os.path.dirname(os.path.realpath(saelineage.__path__[0])) != os.path.realpath(SCRIPTS):
    raise WorkflowError(
        f"saelineage must be this checkout's own library, but Python imports it from '{saelineage.__path__[0]}'; "
        f"install this one (pip install -e '{workflow.basedir}') or uninstall the other"
    )

from saelineage.errors import InputError
from saelineage.jobs import session, targets
from saelineage.jobs.code_digest import code_digest, rules_digest
from saelineage.jobs.gpus import visible_gpus
from saelineage.plan.compare import expand
from saelineage.plan.comparisons import pair_name
from saelineage.plan.load import load_plan
from saelineage.plan.needs import memory, runtime
from saelineage.plan.params import partner_names
from saelineage.plan.paths import MODEL_FILES, SAE_FILES
from saelineage.plan.plan import any_of
from saelineage.plan.strict_yaml import read_entries, read_yaml


def kept_or_temp(paths):
    """The dumps of train splits as a rule's output: temporary if they are not kept."""
    return paths if run.keeps_dumps else temp(paths)


def or_end(function, *arguments, **named):
    """Call a function; turn an InputError into a WorkflowError, which Snakemake prints without a traceback."""
    try:
        return function(*arguments, **named)
    except InputError as error:
        raise WorkflowError(str(error)) from None
