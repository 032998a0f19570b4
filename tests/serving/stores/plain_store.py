"""A store in memory, written from the promise alone: lists, sorting, no care for speed or durability."""

from dataclasses import dataclass, field

from sostenuto.serving.stores.store import NO_FLOOR, Change


@dataclass
class PlainUser:
    code: int
    born: int
    revision: int
    events: list = field(default_factory=list)  # (time_ms, sequence, event)
    late: int = 0
    floor: int = NO_FLOOR
    fields: dict | None = None


class PlainStore:
    def __init__(self):
        self.users = {}
        self.sequence = 0
        self.next_user = 1
        self.stream = []  # Change without user id
        self.trimmed = 0
        self.cursors = {}
        self.names = {}
        self.states = {}
        self.items = {}
        self.item_revision = 0
        self.deleted = []

    def code(self, kind, name):
        names = self.names.setdefault(kind, [])
        if not name:
            return 0
        if name not in names:
            names.append(name)
        return names.index(name) + 1

    def user(self, user_id):
        if user_id not in self.users:
            self.users[user_id] = PlainUser(self.next_user, self.sequence + 1, self.sequence + 1)
            self.next_user += 1
        return self.users[user_id]

    def append(self, events):
        answers = []
        for event in events:
            user = self.users.get(event.user_id)
            same = [s for _, s, e in user.events if e.event_id == event.event_id] if user else []
            if same:
                answers.append(("duplicate", same[0]))
            elif user and event.time_ms <= user.floor:
                answers.append(("expired", 0))
            else:
                user = self.user(event.user_id)
                self.sequence += 1
                if any(time > event.time_ms for time, _, _ in user.events):
                    user.late = self.sequence
                user.revision = self.sequence
                user.events.append((event.time_ms, self.sequence, event))
                user.events.sort(key=lambda each: each[:2])
                codes = [self.code("item", event.item_id), self.code("action", event.action)]
                codes.append(self.code("place", event.place))
                self.code("field.channel", event.fields.get("channel", ""))
                self.stream.append((self.sequence, "event", user.code, event.time_ms, *codes))
                answers.append(("new", self.sequence))
        return [(*answer, self.users[e.user_id].code, self.users[e.user_id].revision)
                for answer, e in zip(answers, events, strict=True)]  # fmt: skip

    def head(self, user_id):
        user = self.users.get(user_id)
        if user is None:
            return None
        times = [time for time, _, _ in user.events]
        return (
            *(user.code, user.revision, len(times), times[0] if times else 0, times[-1] if times else 0),
            *(max([s for _, s, _ in user.events], default=0), user.late, user.floor, user.born),
        )

    def history(self, user_id, before_ms, after_sequence):
        user = self.users.get(user_id)
        if user is None:
            return None
        return [
            (time, sequence, self.code("item", event.item_id), self.code("action", event.action))
            for time, sequence, event in user.events
            if (before_ms is None or time < before_ms) and (after_sequence is None or sequence > after_sequence)
        ]

    def changes(self, after, limit):
        ids = {user.code: user_id for user_id, user in self.users.items()}
        found = [each for each in self.stream if each[0] > after][:limit]
        return [Change(sequence=s, kind=k, user=u, user_id=ids.get(u), time_ms=t, item=i, action=a, place=p)
                for s, k, u, t, i, a, p in found]  # fmt: skip

    def set_user_fields(self, user_id, fields):
        if user_id not in self.users:
            self.user(user_id)
            self.sequence += 1
        self.users[user_id].fields = fields

    def put_items(self, items):
        for item_id, fields in items.items():
            self.item_revision += 1
            self.items[item_id] = (self.item_revision, fields)
        return self.item_revision

    def put_state(self, model, user_id, revision, blob):
        user = self.users.get(user_id)
        if user is None or revision < user.born:
            return False
        if self.states.get((model, user_id), (-1,))[0] > revision:
            return False
        self.states[model, user_id] = (revision, blob)
        return True

    def drop_states(self, model):
        gone = [key for key in self.states if key[0] == model]
        for key in gone:
            del self.states[key]
        return len(gone)

    def _forget(self, sequences):
        self.stream = [each for each in self.stream if each[0] not in sequences]

    def delete_user(self, user_id):
        user = self.users.pop(user_id, None)
        if user is None:
            return None
        self._forget({s for _, s, _ in user.events})
        self.states = {key: value for key, value in self.states.items() if key[1] != user_id}
        self.sequence += 1
        self.stream.append((self.sequence, "deleted", user.code, 0, 0, 0, 0))
        self.deleted.append(self.sequence)
        return self.sequence

    def compact(self, policy, now_ms):
        users = events = changes = 0
        for user in sorted(self.users.values(), key=lambda each: each.code):
            dropped = 0
            times = [time for time, _, _ in user.events]
            if policy.most_events is not None and len(times) > policy.most_events:
                dropped = sum(time < times[-policy.most_events] for time in times)
            if policy.most_age_ms is not None:
                dropped = max(dropped, sum(time < now_ms - policy.most_age_ms for time in times))
            if dropped:
                user.floor = times[dropped - 1]
                self._forget({s for _, s, _ in user.events[:dropped]})
                user.events = user.events[dropped:]
                self.sequence += 1
                user.revision = self.sequence
                self.stream.append((self.sequence, "compacted", user.code, 0, 0, 0, 0))
                users, events = users + 1, events + dropped
        if policy.trim_stream and self.cursors:
            until = min(self.cursors.values())
            gone = [each[0] for each in self.stream if each[0] <= until]
            changes = len(gone)
            self.stream = [each for each in self.stream if each[0] > until]
            self.trimmed = max([self.trimmed, *gone])
        return users, events, changes
