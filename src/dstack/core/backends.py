"""Backends: where compute comes from."""

import enum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from dstack.core.models import CoreModel

LOCAL = "local"
"""The type of the backend of the machine that the server runs on, which all projects share. On the wire it is
`remote`, with this as the region."""


class BackendType(str, enum.Enum):
    """The backends as the REST API names them. `remote` is any host that we reach ourselves."""

    AMDDEVCLOUD = "amddevcloud"
    AWS = "aws"
    AZURE = "azure"
    CLOUDRIFT = "cloudrift"
    CRUSOE = "crusoe"
    CUDO = "cudo"
    DATACRUNCH = "datacrunch"
    DAYTONA = "daytona"
    DIGITALOCEAN = "digitalocean"
    DSTACK = "dstack"
    GCP = "gcp"
    HOTAISLE = "hotaisle"
    JARVISLABS = "jarvislabs"
    KUBERNETES = "kubernetes"
    LAMBDA = "lambda"
    LIUM = "lium"
    REMOTE = "remote"
    NEBIUS = "nebius"
    OCI = "oci"
    RUNPOD = "runpod"
    SEEWEB = "seeweb"
    TENSORDOCK = "tensordock"
    VASTAI = "vastai"
    VERDA = "verda"
    VULTR = "vultr"
    SLURM = "slurm"


class VastAIOfferOrder(str, enum.Enum):
    """By what Vast.ai's offers are ordered."""

    SCORE = "score"
    PRICE = "price"


class VastAIProfileOptions(CoreModel):
    """What to accept from Vast.ai."""

    type: Literal["vastai"] = "vastai"
    offer_order: VastAIOfferOrder | None = None
    """Which offers come first."""
    min_reliability: Annotated[float, Field(ge=0, le=1)] | None = None
    """Between 0 and 1."""
    min_score: Annotated[int, Field(ge=0)] | None = None
    """Of the host."""


class BackendConfig(CoreModel):
    """A backend's configuration: its type and whatever keys that type defines, kept as they are."""

    model_config = ConfigDict(extra="allow")

    type: str

    def settings(self) -> dict[str, Any]:
        """The keys besides `type`."""
        return dict(self.model_extra or {})


class BackendInfo(CoreModel):
    """A configured backend of a project; its configuration is shown without credentials."""

    name: str
    config: BackendConfig


class BackendInfoYAML(CoreModel):
    """A configured backend of a project as the YAML text that an admin edits."""

    name: str
    config_yaml: str
