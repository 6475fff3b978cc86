"""Archives of folders, as one file among a job's outputs: an uncompressed tar with equal bytes for equal files."""

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_files, atomic_path


def write_archive(folders: Mapping[str, Path], path: Path | str) -> None:
    """Write the files of some folders, as `{name}/{file}`, sorted, without times and owners.

    Args:
        folders: by the names that they get.
        path: of the archive.
    """
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, folder in folders.items():
            for file in sorted(folder.iterdir()):
                entry = tarfile.TarInfo(f"{name}/{file.name}")
                entry.size = file.stat().st_size
                with file.open("rb") as content:
                    archive.addfile(entry, content)


def take_folder(path: Path | str, name: str, folder: Path | str) -> list[str]:
    """Copy the files of one folder of an archive to a folder; each appears only when it is whole.

    Returns:
        Their names.

    Raises:
        InputError: if the archive does not hold that folder.
    """
    with tarfile.open(path, "r:") as archive, atomic_files(folder) as temporary:
        entries = {entry.name.removeprefix(f"{name}/"): entry for entry in archive if entry.name.startswith(f"{name}/")}
        if not entries:
            raise InputError(f"'{path}' must hold the folder '{name}', but does not; delete it and run again")
        for file, entry in entries.items():
            content = archive.extractfile(entry)
            if content is None or "/" in file:
                raise InputError(f"'{path}' must hold plain files, but '{entry.name}' is none; delete it and run again")
            with content, (temporary / file).open("wb") as copy:
                shutil.copyfileobj(content, copy, 1 << 20)
    return list(entries)
