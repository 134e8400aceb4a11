"""Two debaters argue a motion, and a judge who is asked in both orders says who argued better.

Irving et al. 2018, AI safety via debate. Zero-sum: what the judge gives one debater, from -1 to 1, it takes from the
other. A verdict that can't be read is no tie: both are left unscored, which is counted, and nothing is learned of it.
"""

from __future__ import annotations

from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.credit import RAECredit
from selfplay_ray.episode import ChatEpisode, EpisodeState
from selfplay_ray.judging import KnownPair, PairwiseJudge, agreement_metrics
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, Examples, Role, Rollout

PRO, CON = "Pro", "Con"
RULE = "Give one reason in one short sentence, and answer what was said against you."
MOTIONS = (
    "Homework should be abolished.",
    "Cities should ban private cars.",
    "Every child should learn to cook at school.",
    "Zoos should be closed.",
    "Cats are better pets than dogs.",
    "Museums should be free for everybody.",
    "The week should have four working days.",
    "Everybody should learn a second language.",
    "Paper books are better than electronic ones.",
    "Public transport should cost nothing.",
    "Telephones should be forbidden at school.",
    "It is better to live in the country than in a city.",
    "Winter is a better season than summer.",
    "Schools should begin an hour later.",
    "Tourists should pay a fee in old towns.",
    "Team sports are better than running alone.",
)
CRITERION = "Who argued better, A or B?"
MOTION = "The motion is: {}"
JUDGED = [
    KnownPair(
        MOTION.format("Rain is good."), "Without rain no plants grow, and we have no food.", "I don't know."
    )
]
"""What a judge is shown of how to judge."""
KNOWN_PAIRS = (
    KnownPair(
        MOTION.format("Museums should be free for everybody."),
        "Then children from poor families can see art and learn from it, too.",
        "Museums museums museums museums.",
    ),
    KnownPair(
        MOTION.format("Telephones should be forbidden at school."),
        "Pupils who don't look at a screen listen better and talk to each other.",
        "I have no idea.",
    ),
    KnownPair(
        MOTION.format("Everybody should learn a second language."),
        "It lets us work, travel and make friends in more than one country.",
        "Yes.",
    ),
    KnownPair(
        MOTION.format("Public transport should cost nothing."),
        "More people would leave the car at home, so that the air is cleaner.",
        "My uncle has a blue bicycle and likes soup.",
    ),
)
"""What it should get right."""
EXAMPLES = {
    PRO: [
        (
            MOTION.format("Everybody should have a dog."),
            "A dog keeps you fit, because it wants a walk every day.",
        ),
        (f"{CON}: A dog costs a lot of money.", "Doctors cost more, and who has a dog sees them less often."),
    ],
    CON: [
        (
            f"{MOTION.format('Rain is better than sun.')}\n\n{PRO}: Rain makes the plants grow.",
            "Without sun no plant grows, however much rain there is.",
        ),
        (f"{PRO}: But too much sun burns them.", "Too much rain drowns them, and us as well."),
    ],
}


class DebateEpisode(ChatEpisode):
    """Both speak ``turns`` times, Pro first; ``judge`` compares them."""

    def __init__(self, judge: PairwiseJudge, turns: int) -> None:
        super().__init__()
        self.judge, self.turns = judge, turns
        self.rubric = Rubric([self.verdict, silence, agreement_metrics(judge, KNOWN_PAIRS)], [1.0, 0.0, 0.0])

    def get_initial_role(self, artifact: str, state: EpisodeState) -> str:
        return PRO

    def get_initial_prompt(self, arena: Arena, artifact: str, state: EpisodeState) -> str:
        return MOTION.format(artifact)

    def get_examples(self, role_id: str, artifact: str, state: EpisodeState) -> Examples:
        return EXAMPLES[role_id]

    def get_next_role(self, artifact: str, state: EpisodeState) -> str:
        return CON if state.current_role == PRO else PRO

    def is_done(self, artifact: str, state: EpisodeState) -> bool:
        return state.turn == 2 * self.turns

    async def verdict(self, rollout: Rollout, arena: Arena) -> dict[str, float | None]:
        """What the judge gives Pro, and takes from Con."""
        said = [(step.role_id, step.completion_text.strip() or "(silence)") for step in rollout.steps]
        about = MOTION.format(rollout.artifact)
        verdict = await self.judge.compare_players(arena, said, PRO, CON, about)
        rollout.metrics.update(verdict.metrics())
        return verdict.rewards(PRO, CON)


def silence(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """How often a debater had nothing to say; the judge is told so, and decides."""
    silent = {PRO: 0.0, CON: 0.0}
    for step in rollout.steps:
        silent[step.role_id] += not step.completion_text.strip()
    return silent


class DebateArena(Arena):
    """``batch_size`` debates a step.

    A debater is compared with what its side has got so far (role-conditioned advantage estimation; Liu et al. 2025,
    SPIRAL): in a zero-sum game the mean of a group says nothing.
    """

    def __init__(self, batch_size: int, judging: PairwiseJudge, turns: int = 2, **options: Any) -> None:
        options.setdefault("credit_assigner", RAECredit())
        super().__init__(batch_size=batch_size, **options)
        self.add_role(Role(PRO, f"You argue for the motion. {RULE}", max_tokens=32))
        self.add_role(Role(CON, f"You argue against the motion. {RULE}", max_tokens=32))
        self.add_episode("debate", DebateEpisode(judging, turns))

    def get_batch(self) -> list[EpisodeRequest]:
        return [EpisodeRequest("debate", self.rng.choice(MOTIONS)) for _ in range(self.batch_size)]
