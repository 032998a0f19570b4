"""What Redis runs as one step: scripts in Lua. A server runs a script alone, and writes what it did as one piece.

Every script takes the prefix of the store's keys as its only key. A script that needs memory is refused before its
first write when the server has none left; those that free some are let through.
Formats of packed values are those of `packing.py`; `{bias}` and `{width}` are filled in per layout.
"""

from __future__ import annotations

from string import Template

from sostenuto.serving.stores.layout import TIME_BIAS, RecordLayout
from sostenuto.serving.stores.packing import MOST_BATCH
from sostenuto.serving.stores.store import NO_FLOOR

MOST_HISTORY_BYTES = 512 * 2**20 - 2**20  # a string of Redis holds 512 MiB

# users: id -> head.  e:<code>: the records of a user in order, one after another.  i:<code>: event hash -> sequence
_SHARED = Template("""
local P = KEYS[1]
local META, USERS, STREAM = P .. 'meta', P .. 'users', P .. 'stream'
local BIAS, WIDTH, NO_FLOOR = $bias, $width, $no_floor
local function number(name) return tonumber(redis.call('HGET', META, name)) end
local function read_head(user_id)
  local packed = redis.call('HGET', USERS, user_id)
  if not packed then return nil end
  local h = {}
  h.user, h.revision, h.count, h.first, h.last, h.last_sequence, h.late, h.floor, h.born =
    struct.unpack('>I4I8I8i8i8I8I8i8I8', packed)
  return h
end
local function pack_head(h)
  return struct.pack('>I4I8I8i8i8I8I8i8I8',
    h.user, h.revision, h.count, h.first, h.last, h.last_sequence, h.late, h.floor, h.born)
end
local function new_user(user_id, sequence)
  local code = redis.call('HINCRBY', META, 'next_user', 1) - 1
  redis.call('HSET', P .. 'user_ids', code, user_id)
  return {user = code, revision = sequence, count = 0, first = 0, last = 0, last_sequence = 0, late = 0,
          floor = NO_FLOOR, born = sequence}
end
local function time_at(key, position)
  return struct.unpack('>I8', redis.call('GETRANGE', key, position * WIDTH, position * WIDTH + 7)) - BIAS
end
local function sequence_at(key, position)
  return (struct.unpack('>I8', redis.call('GETRANGE', key, position * WIDTH + 8, position * WIDTH + 15)))
end
local function first_at_or_after(key, count, time)
  local low, high = 0, count
  while low < high do
    local middle = math.floor((low + high) / 2)
    if time_at(key, middle) < time then low = middle + 1 else high = middle end
  end
  return low
end
local function add_change(kind, h, time, item, action, place, sequence)
  redis.call('ZADD', STREAM, sequence, struct.pack('>I8BI4i8I4I4I4', sequence, kind, h.user, time, item, action, place))
end
local function removed() return tonumber(redis.call('HGET', META, 'removed')) or 0 end
local function mark(kind, h)
  local sequence = redis.call('HINCRBY', META, 'sequence', 1)
  redis.call('HSET', META, 'removed', sequence)
  redis.call('UNLINK', P .. 'snapshots')
  add_change(kind, h, 0, 0, 0, 0, sequence)
  return sequence
end
local function forget(h, records)
  local has_last = false
  for at = 1, #records, WIDTH do
    local _, sequence, hashed = struct.unpack('>I8I8c16', records, at)
    redis.call('ZREMRANGEBYSCORE', STREAM, sequence, sequence)
    redis.call('HDEL', P .. 'i:' .. h.user, hashed)
    has_last = has_last or sequence == h.last_sequence
  end
  if #records > 0 then redis.call('HINCRBY', META, 'events', -(#records / WIDTH)) end
  return has_last
end
""")

# ARGV: fields as letters (c, n), then per event: user id, hash, biased time, item, action, place, value, fields
_APPEND = """#!lua
$shared
local letters = ARGV[1]
local step = 7 + #letters
local n = (#ARGV - 1) / step
local heads, changed, new, answers, codes = {}, {}, {}, {}, {}
for e = 0, n - 1 do
  local user_id = ARGV[2 + e * step]
  if not heads[user_id] then
    local h = read_head(user_id)
    if h and (h.count + n) * WIDTH > $most_bytes then
      return redis.error_reply('HISTORYFULL a history is full')
    end
    heads[user_id] = h
  end
end
local function code(kind, name)
  if name == '' then return 0 end
  local known = codes[kind][name]
  if known then return known end
  known = tonumber(redis.call('HGET', P .. 'codes:' .. kind, name))
  if not known then
    known = redis.call('RPUSH', P .. 'names:' .. kind, name)
    redis.call('HSET', P .. 'codes:' .. kind, name, known)
  end
  codes[kind][name] = known
  return known
end
for kind = 0, 2 + #letters do codes[kind] = {} end
local first = number('sequence')
local sequence = first
for e = 0, n - 1 do
  local at = 2 + e * step
  local user_id, hashed, time8 = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local time = struct.unpack('>I8', time8) - BIAS
  local h = heads[user_id]
  if not h then
    h = new_user(user_id, sequence + 1)
    heads[user_id] = h
  end
  local key, ids = P .. 'e:' .. h.user, P .. 'i:' .. h.user
  local known = redis.call('HGET', ids, hashed)
  if known then
    answers[#answers + 1] = {1, tonumber(known)}
  elseif time <= h.floor then
    answers[#answers + 1] = {2, 0}
  else
    sequence = sequence + 1
    local item, action, place = code(0, ARGV[at + 3]), code(1, ARGV[at + 4]), code(2, ARGV[at + 5])
    local packed_codes = struct.pack('<I4I4I4', item, action, place)
    local parts = {time8, struct.pack('>I8', sequence), hashed, packed_codes, ARGV[at + 6]}
    local kind = 2
    for f = 1, #letters do
      if string.sub(letters, f, f) == 'c' then
        kind = kind + 1
        parts[#parts + 1] = struct.pack('<I4', code(kind, ARGV[at + 6 + f]))
      else
        parts[#parts + 1] = ARGV[at + 6 + f]
      end
    end
    local record = table.concat(parts)
    if h.count == 0 or time >= h.last then
      redis.call('APPEND', key, record)
    else
      local position = first_at_or_after(key, h.count, time + 1)
      local behind = redis.call('GETRANGE', key, position * WIDTH, -1)
      redis.call('SETRANGE', key, position * WIDTH, record .. behind)
      h.late = sequence
    end
    redis.call('HSET', ids, hashed, sequence)
    add_change(0, h, time, item, action, place, sequence)
    if h.count == 0 then h.first, h.last = time, time end
    h.first, h.last = math.min(h.first, time), math.max(h.last, time)
    h.revision, h.last_sequence, h.count = sequence, sequence, h.count + 1
    changed[user_id] = h
    answers[#answers + 1] = {0, sequence}
  end
end
if sequence > first then
  redis.call('HSET', META, 'sequence', sequence)
  redis.call('HINCRBY', META, 'events', sequence - first)
  for user_id, h in pairs(changed) do redis.call('HSET', USERS, user_id, pack_head(h)) end
end
local told = {}
for e = 0, n - 1 do
  local h = heads[ARGV[2 + e * step]]
  local answer = answers[e + 1]
  told[#told + 1] = answer[1]
  told[#told + 1] = answer[2]
  told[#told + 1] = h.user
  told[#told + 1] = h.revision
end
return told
"""

# ARGV: user id, after sequence or ''. Answers the head, and records that hold all those that are asked for
_HISTORY = """#!lua flags=no-writes
$shared
local packed = redis.call('HGET', USERS, ARGV[1])
if not packed then return false end
local h = read_head(ARGV[1])
local key = P .. 'e:' .. h.user
local after = tonumber(ARGV[2])
local records
if after and after >= h.late then
  local taken = 0
  while taken < h.count and sequence_at(key, h.count - taken - 1) > after do
    taken = math.min(h.count, math.max(16, taken * 4))
  end
  records = taken > 0 and redis.call('GETRANGE', key, (h.count - taken) * WIDTH, -1) or ''
else
  records = redis.call('GET', key) or ''
end
local fields = redis.call('HGET', P .. 'user_fields', h.user)
return {packed, records, fields or false}
"""

# ARGV: user id, JSON
_SET_USER_FIELDS = """#!lua
$shared
local h = read_head(ARGV[1])
if not h then
  h = new_user(ARGV[1], redis.call('HINCRBY', META, 'sequence', 1))
  redis.call('HSET', USERS, ARGV[1], pack_head(h))
end
redis.call('HSET', P .. 'user_fields', h.user, ARGV[2])
return 1
"""

# ARGV: item id, JSON, item id, JSON ...
_PUT_ITEMS = """#!lua
$shared
local revision = number('item_revision')
for at = 1, #ARGV, 2 do
  revision = revision + 1
  redis.call('HSET', P .. 'items', ARGV[at], struct.pack('>I8', revision) .. ARGV[at + 1])
  redis.call('ZADD', P .. 'item_stream', revision, ARGV[at])
end
redis.call('HSET', META, 'item_revision', revision)
return revision
"""

# ARGV: model, user id, revision, packed state
_PUT_STATE = """#!lua
$shared
local h = read_head(ARGV[2])
local revision = tonumber(ARGV[3])
if not h or revision < h.born then return 0 end
local model = redis.call('HGET', P .. 'codes:model', ARGV[1])
if not model then
  model = redis.call('RPUSH', P .. 'names:model', ARGV[1])
  redis.call('HSET', P .. 'codes:model', ARGV[1], model)
end
local key = P .. 's:' .. model
local there = redis.call('HGET', key, h.user)
if there and struct.unpack('>I8', there) > revision then return 0 end
redis.call('HSET', key, h.user, ARGV[4])
return 1
"""

# ARGV: model, user id
_STATE = """#!lua flags=no-writes
$shared
local h = read_head(ARGV[2])
local model = redis.call('HGET', P .. 'codes:model', ARGV[1])
if not h or not model then return false end
return redis.call('HGET', P .. 's:' .. model, h.user)
"""

# ARGV: model
_DROP_STATES = """#!lua flags=allow-oom
$shared
local model = redis.call('HGET', P .. 'codes:model', ARGV[1])
if not model then return 0 end
local count = redis.call('HLEN', P .. 's:' .. model)
redis.call('UNLINK', P .. 's:' .. model)
return count
"""

# ARGV: after sequence, limit. Answers what is trimmed, and per change its bytes and the id of its user
_CHANGES = """#!lua flags=no-writes
$shared
local trimmed = number('trimmed')
if tonumber(ARGV[1]) < trimmed then return {trimmed} end
local found = redis.call('ZRANGEBYSCORE', STREAM, '(' .. ARGV[1], '+inf', 'LIMIT', 0, ARGV[2])
local told = {trimmed}
for _, change in ipairs(found) do
  local _, _, user = struct.unpack('>I8BI4', change)
  told[#told + 1] = change
  told[#told + 1] = redis.call('HGET', P .. 'user_ids', user)
end
return told
"""

# ARGV: user id, hash for the list of deletions
_DELETE_USER = """#!lua flags=allow-oom
$shared
local h = read_head(ARGV[1])
if not h then return false end
forget(h, redis.call('GET', P .. 'e:' .. h.user) or '')
redis.call('UNLINK', P .. 'e:' .. h.user, P .. 'i:' .. h.user)
redis.call('HDEL', P .. 'user_fields', h.user)
redis.call('HDEL', P .. 'user_ids', h.user)
redis.call('HDEL', USERS, ARGV[1])
for model = 1, redis.call('LLEN', P .. 'names:model') do redis.call('HDEL', P .. 's:' .. model, h.user) end
local sequence = mark(2, h)
redis.call('HSET', P .. 'deleted', ARGV[2], sequence)
return sequence
"""

# ARGV: user id, most events or '', time before which events are too old or ''
_COMPACT_USER = """#!lua flags=allow-oom
$shared
local h = read_head(ARGV[1])
if not h or h.count == 0 then return 0 end
local key = P .. 'e:' .. h.user
local most, oldest = tonumber(ARGV[2]), tonumber(ARGV[3])
local count = 0
if most and h.count > most then count = first_at_or_after(key, h.count, time_at(key, h.count - most)) end
if oldest then count = math.max(count, first_at_or_after(key, h.count, oldest)) end
if count == 0 then return 0 end
h.floor = time_at(key, count - 1)
local has_last = forget(h, redis.call('GETRANGE', key, 0, count * WIDTH - 1))
h.count = h.count - count
if h.count == 0 then
  redis.call('UNLINK', key)
  h.first, h.last, h.last_sequence = 0, 0, 0
else
  redis.call('SET', key, redis.call('GETRANGE', key, count * WIDTH, -1))
  h.first = time_at(key, 0)
  if has_last then
    local newest = 0
    for at = 0, h.count - 1 do newest = math.max(newest, sequence_at(key, at)) end
    h.last_sequence = newest
  end
end
h.revision = mark(1, h)
redis.call('HSET', USERS, ARGV[1], pack_head(h))
return count
"""

_TRIM = """#!lua flags=allow-oom
$shared
local until_ = nil
for _, at in ipairs(redis.call('HVALS', P .. 'cursors')) do
  at = tonumber(at)
  if not until_ or at < until_ then until_ = at end
end
if not until_ then return 0 end
local found = redis.call('ZRANGEBYSCORE', STREAM, '-inf', until_, 'LIMIT', 0, $most_batch)
if #found == 0 then return 0 end
local last = struct.unpack('>I8', found[#found])
redis.call('ZREMRANGEBYSCORE', STREAM, '-inf', last)
if last > number('trimmed') then redis.call('HSET', META, 'trimmed', last) end
return #found
"""

# ARGV: name, sequence, part, bytes. Fields: `name sequence part` -> bytes, `name` -> `sequence parts`
_PUT_PART = """#!lua
$shared
if removed() > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', P .. 'snapshots', ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3], ARGV[4])
return 1
"""

# ARGV: name, sequence, number of parts
_PUT_SNAPSHOT = """#!lua
$shared
local key, name = P .. 'snapshots', ARGV[1]
if removed() > tonumber(ARGV[2]) then return 0 end
local kept = {[name] = true}
for part = 0, tonumber(ARGV[3]) - 1 do
  local field = name .. ' ' .. ARGV[2] .. ' ' .. part
  if redis.call('HEXISTS', key, field) == 0 then return 0 end
  kept[field] = true
end
for _, field in ipairs(redis.call('HKEYS', key)) do
  if string.sub(field, 1, #name + 1) == name .. ' ' and not kept[field] then redis.call('HDEL', key, field) end
end
redis.call('HSET', key, name, ARGV[2] .. ' ' .. ARGV[3])
return 1
"""

# ARGV: layout as JSON or '', salt, format. Answers what meta holds
_OPEN = """#!lua
$shared
if ARGV[1] ~= '' and redis.call('EXISTS', META) == 0 then
  redis.call('HSET', META, 'format', ARGV[3], 'layout', ARGV[1], 'salt', ARGV[2], 'sequence', 0, 'trimmed', 0,
    'next_user', 1, 'item_revision', 0, 'events', 0, 'loading', 0)
end
return redis.call('HGETALL', META)
"""

# ARGV: user id. Answers the head, the records, hashes and sequences of events
_WHOLE_USER = """#!lua flags=no-writes
$shared
local h = read_head(ARGV[1])
if not h then return false end
local key = P .. 'e:' .. h.user
local ids = redis.call('HGETALL', P .. 'i:' .. h.user)
local user_id = redis.call('HGET', P .. 'user_ids', h.user)
return {redis.call('HGET', USERS, ARGV[1]), redis.call('GET', key) or '', ids, user_id}
"""

_SOURCES = {
    "open": _OPEN,
    "whole_user": _WHOLE_USER,
    "append": _APPEND,
    "history": _HISTORY,
    "set_user_fields": _SET_USER_FIELDS,
    "put_items": _PUT_ITEMS,
    "put_state": _PUT_STATE,
    "state": _STATE,
    "drop_states": _DROP_STATES,
    "changes": _CHANGES,
    "delete_user": _DELETE_USER,
    "compact_user": _COMPACT_USER,
    "trim": _TRIM,
    "put_part": _PUT_PART,
    "put_snapshot": _PUT_SNAPSHOT,
}


def scripts_for(layout: RecordLayout) -> dict[str, str]:
    """Return the scripts by name, for records of a layout."""
    width = layout.dtype.itemsize
    shared = _SHARED.substitute(bias=TIME_BIAS, width=width, no_floor=NO_FLOOR)
    values = {"shared": shared, "most_bytes": MOST_HISTORY_BYTES, "most_batch": MOST_BATCH}
    return {name: Template(source).substitute(values) for name, source in _SOURCES.items()}


__all__ = ["scripts_for"]
