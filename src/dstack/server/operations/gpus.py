"""The GPUs that a run could have."""

from __future__ import annotations

from dstack.core.errors import InvalidRequest
from dstack.core.job_specs import effective_run_spec, make_job_specs
from dstack.core.schemas.gpus import ListGpusRequest, ListGpusResponse
from dstack.server.operations import offers
from dstack.server.operations.context import Context, InProject
from dstack.server.planning.gpu_groups import cpu_groups, gpu_groups
from dstack.server.planning.offers import View

NAME = "dry-run"


async def list_gpus(ctx: Context, at: InProject, wanted: ListGpusRequest) -> ListGpusResponse:
    """All that fleets and backends have, summed up. `reverse`: the dearest first."""
    group_by = wanted.group_by or []
    if "region" in group_by and "backend" not in group_by:
        raise InvalidRequest("Grouping by region needs grouping by backend too: group_by ['backend', 'region']")
    run_spec = effective_run_spec(wanted.run_spec, run_name=None, ssh_key_pub=None)
    specs = make_job_specs(run_spec, run_name=NAME, images=ctx.settings.images)
    view = View(full=wanted.full_offers, unallocated=wanted.unallocated_resources)
    found = await offers.list_for_run(ctx, at, run_spec, specs[:1], offers_only=True, view=view)
    all_offers = [offer for of_job in found for offer in of_job]
    gpus, cpus = gpu_groups(all_offers, group_by), cpu_groups(all_offers, group_by)
    if wanted.reverse:
        gpus, cpus = gpus[::-1], cpus[::-1]
    return ListGpusResponse(gpus=gpus, cpus=cpus)
