"""The steps that change a task's record, as Lua scripts: Redis runs each of them as a whole.

What the records are and how they move is told in `backend.queue.store`, the only user. Arguments come in ARGV; every
key is made from `PREFIX`, so one Redis (not a cluster) holds them all.
"""

PREFIX = "lasagna:"
COUNTERS = f"{PREFIX}counters"
"""The hash of `backend.queue.counters`."""
_DAY = 24 * 3600
KEEP_WORK = 7 * _DAY
"""Seconds for which finished work is listed."""
KEEP_PROJECT = 90 * _DAY
"""Seconds for which it is known how a project is reached, and what its predictions were made of."""
POSTED_JUST_NOW = 10
"""Seconds after a post in which a request for the same work is taken for one that Label Studio made before it."""
POST_VISIBILITY = 180
"""Seconds after which a post that was begun and not finished (its process died) is taken up again."""

# Every script starts with this. `move` keeps one sorted set of keys per state, by time of the last change; `made` notes
# what the prediction was made of that a task has got, and how many tasks have one of each version; `tell`, which fields
# of a delivered task are to be written.
_LUA = f"""
local function now() local t = redis.call('TIME'); return tonumber(t[1]) + tonumber(t[2]) / 1e6 end
local function text(x) return string.format('%.6f', x) end
local prefix = '{PREFIX}'
local function move(id, state)
  local key = prefix .. 'work:' .. id
  local t = now()
  local old = redis.call('HGET', key, 'state')
  if old then redis.call('ZREM', prefix .. 'state:' .. old, id) end
  redis.call('HSET', key, 'state', state, 'changed', text(t))
  redis.call('ZADD', prefix .. 'state:' .. state, t, id)
  if state == 'done' then redis.call('HDEL', key, 'data') end
  if state == 'done' or state == 'failed' then
    redis.call('EXPIRE', key, {KEEP_WORK})
    redis.call('ZREMRANGEBYSCORE', prefix .. 'state:' .. state, '-inf', t - {KEEP_WORK})
  else
    redis.call('PERSIST', key)
  end
end
local function made(id)
  local key = prefix .. 'work:' .. id
  local found = redis.call('HMGET', key, 'made', 'project', 'task')
  redis.call('HDEL', key, 'made')
  if not found[1] or not found[3] or found[3] == '' then return end
  local place, totals = prefix .. 'made:' .. found[2], prefix .. 'made-by:' .. found[2]
  local old = redis.call('HGET', place, found[3])
  if old then redis.call('HINCRBY', totals, cjson.decode(old).version, -1) end
  redis.call('HINCRBY', totals, cjson.decode(found[1]).version, 1)
  redis.call('HSET', place, found[3], found[1])
  redis.call('EXPIRE', place, {KEEP_PROJECT})
  redis.call('EXPIRE', totals, {KEEP_PROJECT})
end
local function tell(id)
  local found = redis.call('HMGET', prefix .. 'work:' .. id, 'fields', 'project', 'task')
  redis.call('HDEL', prefix .. 'work:' .. id, 'fields')
  if not found[1] or not found[3] or found[3] == '' then return end
  redis.call('HSET', prefix .. 'fields:' .. found[2], found[3], found[1])
  redis.call('EXPIRE', prefix .. 'fields:' .. found[2], {KEEP_WORK})
  redis.call('SADD', prefix .. 'fields', found[2])
end
local function count(name) redis.call('HINCRBYFLOAT', '{COUNTERS}', name, 1) end
local function fail(id, reason, kind)
  if redis.call('HGET', prefix .. 'work:' .. id, 'state') ~= 'failed' then count('failures:' .. kind) end
  redis.call('ZREM', prefix .. 'outbox', id)
  redis.call('ZREM', prefix .. 'later', id)
  redis.call('HSET', prefix .. 'work:' .. id, 'reason', reason, 'kind', kind)
  move(id, 'failed')
end
"""

REGISTER = f"""
local id, lease, fields = ARGV[1], tonumber(ARGV[2]), cjson.decode(ARGV[3])
local key = prefix .. 'work:' .. id
local t = now()
local until_ = lease > 0 and text(t + lease) or '0'
local state = redis.call('HGET', key, 'state')
if state == 'done' and redis.call('HGET', key, 'delivery') == 'posted' and fields.replace ~= '1'
   and t - tonumber(redis.call('HGET', key, 'changed')) < {POSTED_JUST_NOW} then
  return {{'posted', until_}}
end
if state == 'failed' and redis.call('HEXISTS', key, 'prediction') == 1 then
  redis.call('HSET', key, 'delivery', '', 'lease', until_)
  redis.call('HDEL', key, 'reason', 'since', 'doubted', 'attempts')
  redis.call('ZADD', prefix .. 'outbox', t + lease, id)
  move(id, 'ready')
  return {{'ready', until_}}
end
if state == 'queued' or state == 'running' or state == 'ready' then
  if tonumber(until_) > tonumber(redis.call('HGET', key, 'lease')) then redis.call('HSET', key, 'lease', until_) end
  return {{state, until_}}
end
if state then redis.call('ZREM', prefix .. 'state:' .. state, id) end
redis.call('DEL', key)
for name, value in pairs(fields) do redis.call('HSET', key, name, value) end
redis.call('HSET', key, 'delivery', '', 'lease', until_, 'asked', text(t))
move(id, 'queued')
return {{'new', until_}}
"""

START = """
local job, taken = ARGV[1], {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local key = prefix .. 'work:' .. id
  local state = redis.call('HGET', key, 'state')
  if state == 'queued' or (state == 'running' and redis.call('HGET', key, 'job') == job) then
    redis.call('HSET', key, 'job', job)
    redis.call('ZREM', prefix .. 'later', id)
    move(id, 'running')
    table.insert(taken, id)
  end
end
return taken
"""

FINISH = """
local id, prediction, note, made_of, fields = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key = prefix .. 'work:' .. id
local state = redis.call('HGET', key, 'state')
if state ~= 'running' and state ~= 'queued' then return state end
local t = now()
redis.call('HSET', key, 'prediction', prediction)
redis.call('HDEL', key, 'reason', 'since', 'doubted', 'attempts')
if note ~= '' then redis.call('HSET', key, 'note', note) end
if made_of ~= '' then redis.call('HSET', key, 'made', made_of) end
if fields ~= '' then redis.call('HSET', key, 'fields', fields) end
redis.call('ZADD', prefix .. 'outbox', math.max(t, tonumber(redis.call('HGET', key, 'lease'))), id)
move(id, 'ready')
return 'ready'
"""

FAIL = """
local id, reason, kind = ARGV[1], ARGV[2], ARGV[3]
local state = redis.call('HGET', prefix .. 'work:' .. id, 'state')
if not state or state == 'done' then return state end
fail(id, reason, kind)
return 'failed'
"""

# Try again: the wait doubles from one second to a minute; after `timeout` seconds of trying it has failed. A doubtful
# image has a time of its own: Label Studio may have been gone for long before it came.
LATER = """
local id, reason, timeout, kind = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local key = prefix .. 'work:' .. id
local state = redis.call('HGET', key, 'state')
if state ~= 'running' and state ~= 'ready' then return state end
local t = now()
local mark = kind == 'image' and 'doubted' or 'since'
redis.call('HSETNX', key, mark, text(t))
local attempts = redis.call('HINCRBY', key, 'attempts', 1)
local tried = t - tonumber(redis.call('HGET', key, mark))
if tried >= timeout then
  fail(id, reason .. ' (tried ' .. attempts .. ' times in ' .. math.floor(tried) .. ' s)', kind)
  return 'failed'
end
count('postponed')
redis.call('HSET', key, 'reason', reason)
local at = t + math.min(60, 2 ^ (attempts - 1))
if state == 'ready' then
  redis.call('ZADD', prefix .. 'outbox', at, id)
else
  redis.call('HDEL', key, 'job')
  redis.call('ZADD', prefix .. 'later', at, id)
  move(id, 'queued')
end
return 'later'
"""

COLLECT = """
local id, lease = ARGV[1], ARGV[2]
local key = prefix .. 'work:' .. id
local state = redis.call('HGET', key, 'state')
if not state then return {'failed', 'the record of this task is gone from Redis; ask again'} end
if state == 'ready' and redis.call('HGET', key, 'delivery') == '' then
  local prediction = redis.call('HGET', key, 'prediction')
  redis.call('HSET', key, 'delivery', 'answered')
  redis.call('HDEL', key, 'prediction')
  redis.call('ZREM', prefix .. 'outbox', id)
  made(id)
  tell(id)
  move(id, 'done')
  count('delivered:answered')
  return {'prediction', prediction}
end
if redis.call('HGET', key, 'lease') == lease then
  redis.call('HSET', key, 'lease', '0')
end
return {state, redis.call('HGET', key, 'reason') or ''}
"""

# Several at once are of one project and plain: what replaces older predictions, has no task or was refused among others
# ('alone') is taken by itself. Of them together no more than so many bytes, and at least one.
TAKE_POSTS = f"""
local limit, bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local t = now()
while true do
  local due = redis.call('ZRANGEBYSCORE', prefix .. 'outbox', '-inf', t, 'LIMIT', 0, 4 * limit)
  if #due == 0 then return {{}} end
  local taken, size, number, project = {{}}, 0, 0, false
  for _, id in ipairs(due) do
    local key = prefix .. 'work:' .. id
    local lease = tonumber(redis.call('HGET', key, 'lease') or '0')
    if redis.call('HGET', key, 'state') ~= 'ready' then
      redis.call('ZREM', prefix .. 'outbox', id)
    elseif redis.call('HGET', key, 'delivery') == '' and lease > t then
      redis.call('ZADD', prefix .. 'outbox', lease, id)
    else
      local of = redis.call('HMGET', key, 'project', 'task', 'replace', 'alone', 'tried')
      local alone = of[2] == '' or of[3] == '1' or of[4] == '1'
      local more = redis.call('HSTRLEN', key, 'prediction')
      if number == 0 or (not alone and of[1] == project and size + more <= bytes) then
        redis.call('HSET', key, 'delivery', 'posting', 'tried', '1')
        redis.call('ZADD', prefix .. 'outbox', t + {POST_VISIBILITY}, id)
        table.insert(taken, id)
        table.insert(taken, of[5] or '0')
        number, size, project = number + 1, size + more, of[1]
        if alone or number == limit then return taken end
      end
    end
  end
  if number > 0 then return taken end
end
"""

POST_ALONE = """
local id = ARGV[1]
local key = prefix .. 'work:' .. id
if redis.call('HGET', key, 'state') ~= 'ready' then return false end
redis.call('HSET', key, 'alone', '1')
redis.call('ZADD', prefix .. 'outbox', now(), id)
return 'ready'
"""

POSTED = """
local id, way = ARGV[1], ARGV[3]
local key = prefix .. 'work:' .. id
redis.call('HSET', key, 'delivery', way, 'prediction_id', ARGV[2])
redis.call('HDEL', key, 'prediction', 'reason', 'since', 'doubted', 'attempts')
redis.call('ZREM', prefix .. 'outbox', id)
if redis.call('HGET', key, 'state') ~= 'done' then count('delivered:' .. way) end
if way == 'posted' then made(id); tell(id) end
move(id, 'done')
return 'done'
"""

RETRY = """
local id = ARGV[1]
local key = prefix .. 'work:' .. id
if redis.call('HGET', key, 'state') ~= 'failed' then return false end
redis.call('HDEL', key, 'reason', 'since', 'doubted', 'attempts', 'job')
redis.call('HSET', key, 'lease', '0')
if redis.call('HEXISTS', key, 'prediction') == 1 then
  redis.call('ZADD', prefix .. 'outbox', now(), id)
  move(id, 'ready')
  return 'ready'
end
redis.call('HSET', key, 'delivery', '')
move(id, 'queued')
return 'queued'
"""

# What nobody waits for with an open page, and no worker has begun.
CANCEL = """
local id = ARGV[1]
local key = prefix .. 'work:' .. id
if redis.call('HGET', key, 'state') ~= 'queued' then return false end
if tonumber(redis.call('HGET', key, 'lease') or '0') > now() then return false end
redis.call('ZREM', prefix .. 'later', id)
redis.call('HDEL', key, 'reason', 'since', 'doubted', 'attempts', 'job')
redis.call('HSET', key, 'delivery', 'cancelled')
move(id, 'done')
return 'done'
"""

# ARGV: a project's uid, then tasks that are gone.
FORGET_TASKS = """
local place, totals = prefix .. 'made:' .. ARGV[1], prefix .. 'made-by:' .. ARGV[1]
for i = 2, #ARGV do
  local old = redis.call('HGET', place, ARGV[i])
  if old then
    redis.call('HDEL', place, ARGV[i])
    redis.call('HINCRBY', totals, cjson.decode(old).version, -1)
  end
end
return true
"""

# ARGV: a project's uid, then tasks with the fields that were written: forgotten, unless others are due by now.
FIELDS_WRITTEN = """
local place = prefix .. 'fields:' .. ARGV[1]
for i = 2, #ARGV, 2 do
  if redis.call('HGET', place, ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', place, ARGV[i]) end
end
if redis.call('EXISTS', place) == 0 then redis.call('SREM', prefix .. 'fields', ARGV[1]) end
return true
"""

REQUEUE = """
local id = ARGV[1]
local state = redis.call('HGET', prefix .. 'work:' .. id, 'state')
if state ~= 'running' and state ~= 'queued' then return false end
redis.call('HDEL', prefix .. 'work:' .. id, 'job')
move(id, 'queued')
return 'queued'
"""

# Works in a list whose record is gone: thrown away by a Redis without memory for them.
FORGET = """
local lost = 0
for _, id in ipairs(ARGV) do
  if redis.call('EXISTS', prefix .. 'work:' .. id) == 0 then
    for _, state in ipairs({'queued', 'running', 'ready'}) do
      lost = lost + redis.call('ZREM', prefix .. 'state:' .. state, id)
    end
    redis.call('ZREM', prefix .. 'outbox', id)
    redis.call('ZREM', prefix .. 'later', id)
  end
end
if lost > 0 then redis.call('HINCRBY', prefix .. 'counters', 'lost', lost) end
return lost
"""

PENDING = """
local count = 0
for _, id in ipairs(ARGV) do
  local state = redis.call('HGET', prefix .. 'work:' .. id, 'state')
  if state == 'queued' or state == 'running' then count = count + 1 end
end
return count
"""

DUE_LATER = """
local due = redis.call('ZRANGEBYSCORE', prefix .. 'later', '-inf', now(), 'LIMIT', 0, tonumber(ARGV[1]))
for _, id in ipairs(due) do redis.call('ZREM', prefix .. 'later', id) end
return due
"""

# Out of memory, Redis refuses the commands of a script that may take some (HSET), yet not those that give some back
# (ZREM): a script stopped between the two would lose a task. This one takes none and is refused like those that do, so
# that a script does all or nothing. (From Redis 7 on, scripts that begin with `#!lua` are refused whole.)
_ALL_OR_NOTHING = "redis.call('SETRANGE', prefix .. 'memory', 0, '')\n"

SCRIPTS = {
    name: _LUA + ("" if name == "pending" else _ALL_OR_NOTHING) + body
    for name, body in {
        "register": REGISTER,
        "start": START,
        "finish": FINISH,
        "fail": FAIL,
        "later": LATER,
        "collect": COLLECT,
        "take_posts": TAKE_POSTS,
        "post_alone": POST_ALONE,
        "posted": POSTED,
        "retry": RETRY,
        "forget_tasks": FORGET_TASKS,
        "fields_written": FIELDS_WRITTEN,
        "requeue": REQUEUE,
        "cancel": CANCEL,
        "forget": FORGET,
        "pending": PENDING,
        "due_later": DUE_LATER,
    }.items()
}
