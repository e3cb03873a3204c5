"""Archives of files that runs take along."""

from uuid import UUID

from dstack.core.models import CoreModel


class FileArchive(CoreModel):
    """An uploaded archive; `hash` is the SHA-256 in hexadecimal that its uploader gave."""

    id: UUID
    hash: str


class FileArchiveMapping(CoreModel):
    """An archive and where in the job it is unpacked."""

    id: UUID
    path: str
