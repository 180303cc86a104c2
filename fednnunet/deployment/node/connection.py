"""The node's link to the server: a SuperNode that runs no code from the wire.

It speaks Flower's Fleet API as Flower's own SuperNode does (key, heartbeats, messages as objects). But Flower's
installs and runs the app that the server sends, in a new process a message; this one hands every message to the
ClientApp that is installed here. It keeps nothing: a message that it lost is sent again by the server.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fednnunet.client_app import app
from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.keys import make_node_key
from fednnunet.deployment.node.diagnosis import explain_rejection, explain_unreachable, said
from fednnunet.deployment.supervision import log_to, terminal
from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.arrays import MAX_BYTES
from fednnunet.exchange.messages import MAX_BODY_BYTES
from fednnunet.exchange.packing import pack, unpack
from fednnunet.files import write_atomically
from fednnunet.processes import end_with_parent

log = logging.getLogger(__name__)

LOG_FILE = "link.log"
POLL_SECONDS = (0.1, 1.0)
"""Between two questions for messages: at first, and at most; while one is worked on none are asked."""
POLL_GROWS = 1.1
"""Each pause is so much longer than the one before: a server that is quick gets a quick node."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Between attempts to reach a server that does not answer; the last for all further ones."""
MAX_RESPONSE_BYTES = MAX_BODY_BYTES + 2**20
"""The longest is an object of a message: its body, or 5 MiB of its arrays."""
AT_ONCE = 16
"""Objects of a message, of at most 5 MiB but for its body, that are in memory per second time while they are sent."""
ANY_SESSION = ""
"""Flower takes an object without the session that it belongs to, if one waits for it."""
OWN_TASK = 1
"""Flower wants an id of the task that sends; the server looks at the node's alone."""

T = TypeVar("T")


class Refused(Exception):
    """The server does not take what the link asks; says what it answered."""


class Link:
    """The connection of one node.

    Args:
        site: its configuration.
        node_config: what the ClientApp sees: the worker's address and key file.
        tell: gets a line for the operator.
    """

    def __init__(self, site: NodeFile, node_config: dict[str, str], tell: Callable[[str], None]) -> None:
        self.site = site
        self.node_config = node_config
        self.tell = tell
        self.node = Node()
        self._id_file = site.folder / "node_id"
        self._quiet = threading.Event()  # never set: waits on it end by time alone
        self._down = False
        keys = read_key(own_key(site))
        self._public_key = public_key_to_bytes(keys[1])
        self._client = FleetHttpClient.from_server_address(
            site.server,
            site.insecure,
            None if site.certificate is None else site.certificate.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperNode"), NodeAuthHttpInterceptor(*keys)],
        )
        # A server must not send this node elsewhere in the hospital's network, nor answer without an end.
        self._client._client.follow_redirects = False
        self._client._client.event_hooks = {"response": [_check_size]}

    def serve(self) -> None:
        """Join, and hand messages to the ClientApp until the process ends."""
        self._join()
        HeartbeatSender(self._heartbeat).start()
        pause = POLL_SECONDS[0]
        while True:
            try:
                if self._serve_one():
                    pause = POLL_SECONDS[0]
                else:
                    time.sleep(pause)
                    pause = min(pause * POLL_GROWS, POLL_SECONDS[1])
            except Refused as refused:
                self.tell(f"the server refused: {refused}; joining again")
                time.sleep(RETRY_SECONDS[-1])
                self._join()

    def leave(self) -> None:
        """Tell the server, which would only notice after a minute otherwise."""
        with contextlib.suppress(httpx.HTTPError, Refused):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))

    def _join(self) -> None:
        # To the server the link that was killed is still in, and it takes no node twice.
        if self._id_file.is_file():
            self.node = Node(node_id=int(self._id_file.read_text(encoding="utf-8")))
            with contextlib.suppress(Refused):
                self._call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self.node.node_id))
        asked = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        told = ""
        while True:
            try:
                if self.site.insecure:
                    with contextlib.suppress(Refused):  # known from before
                        self._call(self._client.RegisterNode, RegisterNodeFleetRequest(public_key=self._public_key))
                self.node = Node(node_id=self._call(self._client.ActivateNode, asked).node_id)
                self._note_id()
                break
            except Refused as refused:
                if str(refused) != told:
                    told = str(refused)
                    why = explain_rejection(told, self.site)
                    self.tell(f"the server does not let this node in: {why}; the node goes on trying")
                time.sleep(RETRY_SECONDS[-1])
        self.tell(f"connected to {self.site.server}")

    def _note_id(self) -> None:
        try:
            write_atomically(self._id_file, str(self.node.node_id))
        except OSError as error:  # the disk is full, say; it is needed after a kill alone
            log.warning("%s cannot be written: %s", self._id_file, error)

    def _heartbeat(self) -> bool:
        request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            return bool(self._client.SendNodeHeartbeat(request).success)
        except (httpx.HTTPError, Refused, ValueError) as error:
            log.info("no heartbeat: %s", error)
            return False

    def _serve_one(self) -> bool:
        """Work on a message, if there is one; whatever happens to it, the next may come."""
        response = self._call(self._client.PullMessages, PullMessagesRequest(node=self.node))
        if not response.messages_list:
            return False
        metadata = response.messages_list[0].metadata
        log.info("message %s: %s", metadata.message_id, metadata.message_type)
        try:
            message = self._receive(metadata.run_id, metadata.message_id, response.message_object_trees[0])
            begun = time.monotonic()
            reply = self._work(message)
            self._send(reply, time.monotonic() - begun)
        except (Refused, ObjectPullError, ObjectPushError, ProtocolError, ValueError) as error:
            # The run is over, or the server has gone meanwhile: it asks again, and gets the stored reply.
            log.warning("message %s is dropped: %s: %s", metadata.message_id, type(error).__name__, error)
        except Exception:  # whatever a server sends, the link lives on
            log.exception("message %s is dropped", metadata.message_id)
        return True

    def _receive(self, run_id: int, message_id: str, tree: ObjectTree) -> Message:
        left = MAX_BYTES + MAX_BODY_BYTES
        pull = make_pull_object_fn_protobuf(lambda asked: self._call(self._client.PullObject, asked), self.node, run_id)

        def pull_some(object_id: str) -> bytes:
            nonlocal left
            content = pull(object_id)
            left -= len(content)
            if left < 0:
                raise ProtocolError("the server sent more than a message may hold")
            return content

        contents = pull_objects(
            [part.object_id for part in iterate_object_tree(tree)], pull_some, initial_backoff=POLL_SECONDS[0]
        )
        self._call(
            self._client.ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=message_id),
        )
        message = inflate_object_from_contents(message_id, contents)
        if not isinstance(message, Message):
            raise ProtocolError("the server sent something that is no message")
        message.metadata.__dict__["_message_id"] = message_id
        return message

    def _work(self, message: Message) -> Message:
        run_id, node_id = message.metadata.run_id, self.node.node_id
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = OWN_TASK, run_id, node_id
        message.content = unpack(message.content, "the server")
        context = Context(run_id, node_id, node_config=dict(self.node_config), state=RecordDict(), run_config={})
        reply = app(message, context)
        message.content = RecordDict()  # a reply can be as large: not both at once
        if reply.has_content():
            reply.content = pack(reply.content)
        return reply

    def _send(self, reply: Message, seconds: float) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        head = message_to_proto(remove_content_from_message(reply) if reply.has_content() else reply)
        request = PushMessagesRequest(
            node=self.node, messages_list=[head], message_object_trees=[tree], clientapp_runtime_list=[seconds]
        )
        response = self._call(self._client.PushMessages, request)
        wanted = [id_ for id_ in response.objects_to_push if id_ in objects]
        # Nothing is: the server has taken the message before, and its answer was lost. Then it waits for objects still.
        session = response.session_id if wanted else ANY_SESSION
        push = make_push_object_fn_protobuf(
            lambda asked: self._call(self._client.PushObject, asked), self.node, reply.metadata.run_id, session
        )
        if not wanted:
            for id_, one in objects.items():
                with contextlib.suppress(ObjectPushError):  # it has this one
                    push(id_, one.deflate())
            return
        for start in range(0, len(wanted), AT_ONCE):  # Flower makes a copy of all that it is given
            push_objects({id_: objects.pop(id_) for id_ in wanted[start : start + AT_ONCE]}, push)

    def _call(self, call: Callable[..., T], request: object) -> T:
        """Until the server answers: it, or the network, may be away for days.

        Raises:
            Refused: the server answered, and not with what was asked for.
        """
        attempts = 0
        while True:
            try:
                answer = call(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise Refused(said(error.response)) from None
                problem = said(error.response)
            except ValueError as error:
                raise Refused(f"an answer that cannot be read ({error})") from None
            except httpx.TransportError as error:
                problem = explain_unreachable(error, self.site)
            else:
                if self._down:
                    self._down = False
                    self.tell(f"{self.site.server} answers again")
                return answer
            if attempts >= 2 and not self._down:
                self._down = True
                self.tell(f"{self.site.server} does not answer ({problem}); the node goes on trying")
            log.info("attempt %d failed: %s", attempts + 1, problem)
            self._quiet.wait(RETRY_SECONDS[min(attempts, len(RETRY_SECONDS) - 1)])
            attempts += 1


def own_key(site: NodeFile) -> Path:
    """File of the node's private key; without keys one is made, so that the server knows the node again."""
    if site.key is not None:
        return site.key
    if not (site.folder / "node.key").is_file():
        make_node_key(site.folder)
    return site.folder / "node.key"


def read_key(path: Path) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    """A node's key pair.

    Raises:
        ConfigError: the file cannot be read, or holds another kind of key.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"key: {path} holds no private key that can be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"key: {path} is of another kind; `fednnunet keys` makes ECDSA keys")
    return key, key.public_key()


def _check_size(response: httpx.Response) -> None:
    """Whether a response says how long it is, and is no longer than it may be; nothing of it is read before.

    Raises:
        Refused: it does not, or is.
    """
    length = response.headers.get("content-length", "")
    open_ended = "transfer-encoding" in response.headers or "content-encoding" in response.headers
    if open_ended or not length.isdigit() or int(length) > MAX_RESPONSE_BYTES:
        raise Refused(f"an answer of {length[:20] if not open_ended else 'untold'} bytes")


def run_link(site: NodeFile, node_config: dict[str, str], log_file: Path) -> None:
    """Process entry: own log, ends with its parent.

    Args:
        site: configuration of the node.
        node_config: what the ClientApp sees.
        log_file: takes what the link and its libraries say; what the operator should read goes to the terminal, too.
    """
    say = terminal()
    log_to(log_file)
    end_with_parent()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each of thousands of requests

    def tell(text: str) -> None:
        log.warning("%s", text)
        say(text)

    link = Link(site, node_config, tell)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        link.serve()
    finally:
        link.leave()
