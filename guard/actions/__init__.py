"""The table of actions: the keys that `then:` may have. Adding one is a file here and a name below."""

from guard.actions.annotate import Annotate
from guard.actions.base import Action
from guard.actions.block import Block
from guard.actions.escalate import Escalate
from guard.actions.log import Log
from guard.actions.replace import Replace
from guard.actions.steer import Steer

ACTIONS: dict[str, type[Action]] = {
    action.kind: action for action in (Block, Replace, Escalate, Steer, Annotate, Log)
}
