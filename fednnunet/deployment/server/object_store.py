"""Flower's store of objects with the contents of large ones in files; what there is, and who refers to it, in SQL."""

from __future__ import annotations

from pathlib import Path

from fastapi import HTTPException
from sqlalchemy import select, update

from fednnunet.deployment.server.flower_superlink import (
    SqlObjectStore,
    StoredObject,
    get_object_id,
    validate_object_content,
)
from fednnunet.deployment.server.object_files import LEAST_BYTES, ObjectFiles
from fednnunet.deployment.server.staging import Staged
from fednnunet.files import DISK_FULL

IDS_AT_ONCE = 500
"""Ids in one statement, of which SQLite limits the number."""


class FileObjectStore(SqlObjectStore):
    """Flower's store, whose table has empty contents for objects that are in files.

    Args:
        database: SQLite file of the SuperLink's state.
        files: contents of large objects; those that are damaged, or of no object, are removed at the start.
    """

    def __init__(self, database: Path, files: ObjectFiles) -> None:
        super().__init__(str(database), verify=False)  # which :meth:`put` does
        self._files = files
        files.make_folder()
        self.initialize()
        self._compare_with_files()

    def stage(self, object_id: str, object_content: bytes) -> bytes | Staged:
        """Take the content of an object into its file before the transaction that stores it, which others wait for.

        An empty content stands for the file that there is.

        Returns:
            What to :meth:`put`: the content as it is where it is small, or of an object that nobody waits for.

        Raises:
            HTTPException: the disk is full.
        """
        size = len(object_content)
        if 0 < size < LEAST_BYTES or not self._is_awaited(object_id):
            return object_content
        try:
            if size and object_id == get_object_id(object_content):
                validate_object_content(object_content)
                return Staged(size, self._files.stage(object_id, [object_content]))
            if size:
                return object_content  # which :meth:`put` refuses
            if self._files.is_sound(object_id):
                return Staged(size)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise HTTPException(507, "the disk of the server's state is full") from error
            raise
        with self._mutation_session():  # or a sound one could come in between
            if self._is_awaited(object_id):
                self._files.remove(object_id)
        return object_content

    def unstage(self, staged: Staged) -> None:
        """Remove the file of an object that was staged, and then not put."""
        if staged.file is not None:
            staged.file.unlink(missing_ok=True)

    def put(self, object_id: str, object_content: bytes | Staged) -> None:
        """Store the content of an object that was announced.

        A file gets its name in the transaction that stores it: the server app, which reads it then, has to wait for the
        end of this one before it can say that it has it.

        Raises:
            ValueError: it is not what the id says.
            NoObjectInStoreError: it was not announced.
            OSError: it cannot be written.
        """
        with self._mutation_session():
            if isinstance(object_content, Staged):
                if self._is_awaited(object_id):
                    if object_content.file is not None:
                        self._files.take(object_content.file, object_id)
                    elif not self._files.exists(object_id):
                        raise ValueError(f"the file of object {object_id} is gone")
                object_content = b""
            else:
                if object_id != get_object_id(object_content):
                    raise ValueError(f"object {object_id} has another content than its id says")
                validate_object_content(object_content)
                if len(object_content) >= LEAST_BYTES:
                    if self._is_awaited(object_id):  # else nothing would ever remove the file
                        self._files.write(object_id, [object_content])
                    object_content = b""
            super().put(object_id, object_content)

    def _is_awaited(self, object_id: str) -> bool:
        """Whether an object was announced, and has not come."""
        with self.session() as session:
            return session.scalar(select(StoredObject.is_available).where(StoredObject.object_id == object_id)) == 0

    def get(self, object_id: str) -> bytes | None:
        """Content of an object: empty where it has not come yet, None where it is unknown or lost."""
        stored = select(StoredObject.content, StoredObject.is_available).where(StoredObject.object_id == object_id)
        with self.session() as session:
            row = session.execute(stored).one_or_none()
        if row is None or row.content or not row.is_available:
            return None if row is None else row.content
        content = self._files.read(object_id)
        if content is None:
            self._ask_again([object_id])
        return content

    def delete(self, object_id: str) -> None:
        """Delete an object and, by Flower's recursion, those that only it refers to.

        The file goes before the row's transaction ends: after it, the object may have been stored anew.
        """
        with self._mutation_session():
            super().delete(object_id)
            if self._files.exists(object_id) and object_id not in self:
                self._files.remove(object_id)

    def clear(self) -> None:
        """Delete all objects."""
        super().clear()
        self._files.keep_only(())

    def _compare_with_files(self) -> None:
        in_files = select(StoredObject.object_id).where(StoredObject.is_available == 1, StoredObject.content == b"")
        with self.session() as session:
            expected = [str(object_id) for object_id in session.scalars(in_files)]
        kept = self._files.keep_only(expected)
        self._ask_again([object_id for object_id in expected if object_id not in kept])

    def _ask_again(self, object_ids: list[str]) -> None:
        """Say of objects whose contents are lost that they have not come: whoever announces them next sends them."""
        with self.session() as session:
            for start in range(0, len(object_ids), IDS_AT_ONCE):
                lost = object_ids[start : start + IDS_AT_ONCE]
                session.execute(update(StoredObject).where(StoredObject.object_id.in_(lost)).values(is_available=0))
