"""LmdbFile: a folder of LMDB with its locks, limits and errors; what lies in it is `lmdb_store.py`.

    data.mdb, lock.mdb   LMDB's own
    store.lock           held (shared) by whoever has the folder open, held alone by whoever rewrites it

Every commit is on the disk when it returns (LMDB syncs data, then the page that makes them valid). A process that is
killed while it writes leaves the last whole transaction, and its lock frees itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from sostenuto.schema.errors import (
    MissingExtra,
    SpecError,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreGone,
)

if TYPE_CHECKING:
    from lmdb import Environment, Transaction

Result = TypeVar("Result")

LEAST_BYTES = 2**20
RESERVE = 4 * 2**20  # first step beyond the limit when a full store is to delete something
NEARLY = 2**20
WAIT_S = 5.0  # for a rewrite by another process
# LMDB does not keep these counts exact when a key goes with all its duplicates; they are for statistics, nothing hangs
# on them. Whether every page is there, in its place and used once is checked by the walk itself.
PAGE_COUNT = re.compile(r" DB: walked \d+ (branch|leaf) pages .*record says \d+$")
NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class _Gate:
    """Many may be inside, or one alone: a map of the file is replaced only while nobody reads through it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False

    def enter(self) -> None:
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._alone = True  # whoever comes waits; whoever is inside ends
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


class LmdbFile:
    """An open folder of LMDB: transactions, and every error in our words."""

    def __init__(self, folder: Path, databases: Collection[str], *, fixed: Collection[str], most_bytes: int) -> None:
        """Open a folder, or make it.

        Args:
            folder: of the file.
            databases: names of all of them.
            fixed: those that hold sorted duplicates of one size.
            most_bytes: limit of the file, then `StoreFull`; address space, not disk.
        """
        try:
            import lmdb
        except ImportError as error:
            raise MissingExtra(
                "an embedded store needs the package lmdb, which is not installed; pip install 'sostenuto[serve]'"
            ) from error
        if most_bytes < LEAST_BYTES:
            raise SpecError(f"most_bytes of a store must be at least {LEAST_BYTES:,}, got {most_bytes:,}; give it more")
        self._lmdb = lmdb
        self.folder, self.most_bytes = folder, most_bytes
        self._databases, self._fixed = tuple(databases), frozenset(fixed)
        self._gate = _Gate()
        self._env: Environment | None = None
        self._lock: IO[bytes] | None = None
        self._file: tuple[int, int] | None = None  # which file is open
        self.db: dict[str, Any] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._locked()
            self._remove_leftovers(self._lock)
            self._open()
        except OSError as error:
            self.close()
            raise StoreGone(
                f"a store must be a folder that can be written, {folder} is not ({error.strerror}); name another"
            ) from error
        except BaseException:
            self.close()
            raise

    def _locked(self) -> IO[bytes]:
        import fcntl

        file = (self.folder / "store.lock").open("ab")
        until = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    file.close()
                    raise StoreBusy(f"{self.folder} must not be rewritten just now, it is; come back later") from None
                time.sleep(0.02)
            else:
                return file

    def _remove_leftovers(self, lock: IO[bytes]) -> None:
        """Remove what a killed rewrite left, when nobody else is there who might be rewriting."""
        import fcntl

        left = self.folder / "rewriting"
        if left.exists():
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            fcntl.flock(lock, fcntl.LOCK_SH)

    def _open(self) -> None:
        try:
            env = self._env = self._lmdb.open(
                str(self.folder),
                map_size=self.most_bytes,
                max_dbs=len(self._databases),
                max_readers=1_024,
                max_spare_txns=1,
                mode=0o700,
                metasync=True,
                sync=True,
            )
            self._file = self._there()
            env.reader_check()  # frees what killed readers held
            self._refuse_short_file(env)
            self.db = {
                name: env.open_db(name.encode(), dupsort=name in self._fixed, dupfixed=name in self._fixed)
                for name in self._databases
            }
        except self._lmdb.Error as error:
            raise self.told(error) from error

    def _refuse_short_file(self, env: Environment) -> None:
        """Refuse a file that ends before its last page: reading the map behind the end would end the process.

        Pages behind the end may be free ones that were never written; so such a file is walked through first.
        """
        file = self.folder / "data.mdb"
        with env.begin(write=True) as txn:  # nobody else writes meanwhile; this reads no page but the first two
            wanted = env.stat()["psize"] * (env.info()["last_pgno"] + 1)
            size = file.stat().st_size
            problems = self.problems() if size < wanted else []
            txn.abort()
        if problems:
            raise StoreDamaged(
                f"{file} must have {wanted:,} bytes, it has {size:,} ({problems[0]}); "
                "restore a backup into a new folder"
            )

    def problems(self) -> list[str]:
        """Walk through the file without LMDB, which trusts what it reads. It must stand still meanwhile."""
        from lmdb import verify

        try:
            found: list[str] = verify.verify(str(self.folder))  # type: ignore[no-untyped-call]
        except verify.VerifyError as error:
            return [str(error)]
        return [each for each in found if not PAGE_COUNT.search(each)]

    def close(self) -> None:
        """Let go of the folder."""
        with self._gate.alone():
            env, self._env = self._env, None
            lock, self._lock = self._lock, None
            if env is not None:
                env.close()
            if lock is not None:
                lock.close()

    def told(self, error: Exception) -> StoreError:
        """Return our error for one of LMDB's."""
        lmdb, where = self._lmdb, str(self.folder)
        if isinstance(error, lmdb.MapFullError):
            return StoreFull(
                f"{where} must stay below {self.most_bytes:,} bytes, it would not; compact it, or open it with a "
                "higher limit"
            )
        code = getattr(error, "code", 0)
        # LMDB reports a write of which only a part found room as a failure of the disk
        if code in NO_SPACE or (code == errno.EIO and self._no_room()) or isinstance(error, lmdb.TxnFullError):
            return StoreFull(f"{where} must have room, it has none ({error}); free some on its disk, or compact it")
        damaged = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.PageNotFoundError)
        if isinstance(error, (*damaged, lmdb.CursorFullError, lmdb.PageFullError, lmdb.IncompatibleError)):
            return StoreDamaged(
                f"{where} must be a whole store, it is not ({error}); restore a backup into a new folder"
            )
        if "already open" in str(error):
            return StoreBusy(f"{where} must be opened once in a process, it is open already; share that one")
        return StoreGone(f"{where} must be readable and writable, it is not ({error}); see to its disk and rights")

    def _no_room(self) -> bool:
        """Whether the disk, or what a file of this process may hold, is used up to the last megabyte."""
        import resource

        try:
            disk = os.statvfs(self.folder)
            size = (self.folder / "data.mdb").stat().st_size
        except OSError:
            return False
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return disk.f_bavail * disk.f_frsize < NEARLY or (most != resource.RLIM_INFINITY and size > most - NEARLY)

    @property
    def env(self) -> Environment:
        """LMDB's own object, while the folder is open."""
        if self._env is None:
            raise StoreGone(f"the store {self.folder} must be open, it was closed; open it again")
        return self._env

    @contextlib.contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Transaction[memoryview]]:
        """One transaction; all or nothing. What is read is bytes of the map: good until the end of it only."""
        while True:
            self._gate.enter()
            try:
                if write:
                    self.check_there()
                try:
                    txn = self.env.begin(write=write, buffers=True)
                except self._lmdb.MapResizedError:
                    pass  # another process went beyond our map
                else:
                    with txn:
                        yield txn
                    if write:
                        self.check_there()  # before anybody is told that it is durable
                    return
            except self._lmdb.Error as error:
                raise self.told(error) from error
            finally:
                self._gate.leave()
            self._resize(0)

    def _there(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / "data.mdb").stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def check_there(self) -> None:
        """Refuse to go on when the file was removed or replaced: what is written into the open one would be lost."""
        if self._there() != self._file:
            raise StoreGone(
                f"the store {self.folder} must stay where it is while it is open, it was removed or replaced; "
                "put it back, or start anew"
            )

    def _resize(self, size: int) -> None:
        with self._gate.alone():
            try:
                self.env.set_mapsize(size)
            except self._lmdb.Error as error:
                raise self.told(error) from error

    def even_if_full(self, step: Callable[[Transaction[memoryview]], Result]) -> Result:
        """Run a step that frees room. It needs some first, and may go beyond the limit for that."""
        reserve = 0
        try:
            while True:
                try:
                    with self.transaction(write=True) as txn:
                        return step(txn)
                except StoreFull as error:
                    if reserve >= self.most_bytes or not isinstance(error.__cause__, self._lmdb.MapFullError):
                        raise
                reserve = max(2 * reserve, RESERVE)
                self._resize(self.most_bytes + reserve)
        finally:
            if reserve:
                self._resize(self.most_bytes)  # LMDB keeps what is in use

    def rewrite(self) -> None:
        """Write the file anew, without what was deleted."""
        import fcntl

        with self._gate.alone():
            env, lock = self.env, self._lock
            assert lock is not None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                fcntl.flock(lock, fcntl.LOCK_SH)
                raise StoreBusy(
                    f"{self.folder} must be open nowhere else to be rewritten, it is; end the servers first"
                ) from error
            aside = self.folder / "rewriting"
            try:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(mode=0o700)
                env.copy(str(aside), compact=True)
                with (aside / "data.mdb").open("rb") as written:
                    os.fsync(written.fileno())
                env.close()
                self._env = None
                (aside / "data.mdb").replace(self.folder / "data.mdb")
                (self.folder / "lock.mdb").unlink(missing_ok=True)
                shutil.rmtree(aside)
                sync_folder(self.folder)
                self._open()
            except self._lmdb.Error as error:
                raise self.told(error) from error
            except OSError as error:
                raise self.told(self._lmdb.Error(str(error), error.errno or 0)) from error
            finally:
                fcntl.flock(lock, fcntl.LOCK_SH)


def sync_folder(folder: Path) -> None:
    """Make sure that names in a folder are on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


__all__ = ["LmdbFile", "sync_folder"]
