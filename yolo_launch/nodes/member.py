"""Runs a node other than the master, which takes the job from the rendezvous, checks it, and takes part."""

from __future__ import annotations

from contextlib import nullcontext

from trainer.errors import UserError
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.run_lock import hold
from yolo_launch.nodes.agent import NodeAgent, refuse_job
from yolo_launch.nodes.context import NodeContext
from yolo_launch.nodes.events import NodeEvents
from yolo_launch.nodes.session import NodeSession
from yolo_launch.nodes.work import MemberWork
from yolo_launch.rendezvous.messages import JoinRequest
from yolo_launch.spec import Outcome, Ready, nobody_waits


class NodeMember:
    """A member of a job."""

    def __init__(self, context: NodeContext, join_request: JoinRequest, join_timeout_s: float) -> None:
        self._context = context
        self._join_request = join_request
        self._join_timeout_s = join_timeout_s

    def run(self, work: MemberWork, ready: Ready = nobody_waits) -> Outcome:
        """Takes part in the master's job to its end. Call it in the main thread.

        Raises UserError if this node does not get in or cannot do the job, and KeyboardInterrupt for a Ctrl-C before
        its rank was ready.
        """
        context = self._context
        events = NodeEvents(context.status_line, work.receive_findings)
        session = NodeSession(self._join_request, context.identity.endpoint, events)
        try:
            description = session.join(self._join_timeout_s)
            try:
                introduction = work.accept(description)
            except UserError as error:
                refuse_job(session.client, error)
                raise
            session.introduce(introduction)
        except KeyboardInterrupt:
            session.leave("it left (Ctrl-C)")
            raise
        is_own = run_directory.MASTERS_FOLDER in run_directory.read_plan(work.run_dir)
        with hold(work.run_dir) if is_own else nullcontext():  # the master holds one that both see
            ready(work.run_dir)
            return NodeAgent(context, work, session, events).run()
