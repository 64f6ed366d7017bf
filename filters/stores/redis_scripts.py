"""The scripts that count limits in Redis: meters.py in Lua, on the clock of the server.

One run is one decision: Redis runs nothing in between, so all rules are asked and then all are taken from, or none is.
Every key ends by itself once its meter is as good as new.

Lua has no whole numbers but those of a double, exact below 2^53. A debt in units of 1 / length is larger, so it is kept
as whole units and a remainder, and products are divided digit by digit in base 4096 (`muldiv`): the result is that of
meters.py, to the microsecond.

    w  window   "opened used"          d  debt  "at whole rest"          s  slots  {worker: how many}

Slots belong to workers. A worker whose lease has ended holds none: whoever meets its entry removes it.

`TAKE`   KEYS workers, meter …   ARGV me, (kind, limit, length, amount) …
         -> "1 left resets stamp …" or, where a rule refuses it, "0 rule wait left resets"; microseconds throughout
`SETTLE` KEYS meter …            ARGV me, (kind, limit, length, stamp, taken, used) …
`LEASE`  KEYS workers            ARGV me, who I was, length -> [whether it still ran, workers alive, those before me]
`HOLD`   KEYS slots …            ARGV me, how many …
`ADD`    KEYS slots              ARGV me
`LEAVE`  KEYS workers            ARGV me
`RESTORE` KEYS mark, window …    ARGV who tells, length, used …
"""

from __future__ import annotations

from typing import Final

from .redis_link import Script

SLOTS_TTL: Final = 86_400_000
"""Milliseconds after the last call of a caller at which its slots are forgotten: longer than calls take."""
MARGIN: Final = 1_000
"""Milliseconds that a key outlives its meter."""

_METERS: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function muldiv(a, b, m)
  local digits, n = {}, 0
  while b > 0 do
    local low = b % 4096
    n = n + 1
    digits[n] = low
    b = (b - low) / 4096
  end
  local whole, rest = 0, 0
  for i = n, 1, -1 do
    local sum = rest * 4096 + a * digits[i]
    rest = sum % m
    whole = whole * 4096 + (sum - rest) / m
  end
  return whole, rest
end

local function load(key, kind)
  local kept = redis.call('GET', key)
  if not kept then return nil end
  local a, b, c = string.match(kept, '^(%d+) (%d+) ?(%d*)$')
  return tonumber(a), tonumber(b), tonumber(c)
end

local function save(key, left, form, ...)
  redis.call('SET', key, string.format(form, ...), 'PX', string.format('%.0f', math.ceil(left / 1000) + MARGIN))
end

local function owes(key, limit, length)
  local at, whole, rest = load(key)
  if not at then return 0, 0 end
  local elapsed = math.max(0, now - at)
  local over = elapsed % length
  local paid, part = muldiv(over, limit, length)
  whole = whole - paid - (elapsed - over) / length * limit
  rest = rest - part
  if rest < 0 then
    whole = whole - 1
    rest = rest + length
  end
  if whole < 0 then return 0, 0 end
  return whole, rest
end

local function due(whole, rest, limit, length)
  local time, over = muldiv(length, whole, limit)
  over = over + rest
  local part = over % limit
  time = time + (over - part) / limit
  if part > 0 then time = time + 1 end
  return time
end

local function window(key, length)
  local opened, used = load(key)
  if not opened or now - opened >= length then return now, 0, false end
  return math.min(opened, now), used, true
end
""".replace("MARGIN", str(MARGIN))

TAKE: Final = Script(
    "take",
    _METERS
    + """
local me = ARGV[1]
local alive = {[me] = true}

local function held(key)
  local sum, workers = 0, redis.call('HGETALL', key)
  for i = 1, #workers, 2 do
    local worker = workers[i]
    if alive[worker] == nil then
      alive[worker] = tonumber(redis.call('HGET', KEYS[1], worker) or '0') > now
    end
    if alive[worker] then
      sum = sum + workers[i + 1]
    else
      redis.call('HDEL', key, worker)
    end
  end
  return sum
end

local found, refused, longest, told = {}, 0, 0, nil
for n = 1, #KEYS - 1 do
  local key, at = KEYS[n + 1], n * 4 - 2
  local kind, limit = ARGV[at], tonumber(ARGV[at + 1])
  local length, amount = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local wait, left, resets = 0, 0, 0
  if kind == 'w' then
    local opened, used, runs = window(key, length)
    found[n] = {opened, used}
    left = math.max(0, limit - used)
    if runs then
      resets = opened + length - now
      if used + amount > limit then wait = resets end
    end
  elseif kind == 'd' then
    local whole, rest = owes(key, limit, length)
    found[n] = {whole, rest}
    left = math.max(0, limit - whole - (rest > 0 and 1 or 0))
    resets = due(whole, rest, limit, length)
    local over = whole + amount - limit
    if over > 0 or (over == 0 and rest > 0) then wait = due(over, rest, limit, length) end
  else
    local used = held(key)
    found[n] = {used}
    left = math.max(0, limit - used)
    if used > 0 then resets = SLOT_WAIT end
    if used + amount > limit then wait = SLOT_WAIT end
  end
  if wait > longest then
    refused, longest, told = n, wait, string.format('%.0f %.0f', left, resets)
  end
end
if refused > 0 then
  return string.format('0 %d %.0f %s', refused - 1, longest, told)
end

local reply = {'1'}
for n = 1, #KEYS - 1 do
  local key, at, meter = KEYS[n + 1], n * 4 - 2, found[n]
  local kind, limit = ARGV[at], tonumber(ARGV[at + 1])
  local length, amount = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if kind == 'w' then
    local opened, used = meter[1], meter[2] + amount
    local closes = opened + length - now
    save(key, closes, '%.0f %.0f', opened, used)
    reply[#reply + 1] = string.format('%.0f %.0f %.0f', math.max(0, limit - used), closes, opened)
  elseif kind == 'd' then
    local whole, rest = meter[1] + amount, meter[2]
    local resets = due(whole, rest, limit, length)
    save(key, resets, '%.0f %.0f %.0f', now, whole, rest)
    reply[#reply + 1] = string.format('%.0f %.0f 0', math.max(0, limit - whole - (rest > 0 and 1 or 0)), resets)
  else
    redis.call('HINCRBY', key, me, ARGV[at + 3])
    redis.call('PEXPIRE', key, SLOTS_TTL)
    reply[#reply + 1] = string.format('%.0f SLOT_WAIT 0', math.max(0, limit - meter[1] - amount))
  end
end
return table.concat(reply, ' ')
""".replace("SLOTS_TTL", str(SLOTS_TTL)).replace("SLOT_WAIT", "1000000"),
)

SETTLE: Final = Script(
    "settle",
    _METERS
    + """
for n = 1, #KEYS do
  local key, at = KEYS[n], n * 6 - 4
  local kind, limit, length = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local stamp, more = tonumber(ARGV[at + 3]), ARGV[at + 5] - ARGV[at + 4]
  if kind == 'w' then
    local opened, used, runs = window(key, length)
    if runs and opened == stamp then
      save(key, opened + length - now, '%.0f %.0f', opened, math.max(0, used + more))
    end
  elseif kind == 'd' then
    local whole, rest = owes(key, limit, length)
    whole = whole + more
    if whole < 0 then whole, rest = 0, 0 end
    save(key, due(whole, rest, limit, length), '%.0f %.0f %.0f', now, whole, rest)
  elseif redis.call('HINCRBY', key, ARGV[1], -1) <= 0 then
    redis.call('HDEL', key, ARGV[1])
  end
end
""",
)

LEASE: Final = Script(
    "lease",
    """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local me, was, length = ARGV[1], ARGV[2], tonumber(ARGV[3])
local ran = tonumber(redis.call('HGET', KEYS[1], me) or '0') > now and 1 or 0
if was ~= '' then redis.call('HDEL', KEYS[1], was) end
redis.call('HSET', KEYS[1], me, string.format('%.0f', now + length))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', length / 500))
local workers, alive, before = redis.call('HGETALL', KEYS[1]), 0, 0
for i = 1, #workers, 2 do
  if tonumber(workers[i + 1]) > now then
    alive = alive + 1
    if workers[i] < me then before = before + 1 end
  else
    redis.call('HDEL', KEYS[1], workers[i])
  end
end
return {ran, alive, before}
""",
)

HOLD: Final = Script(
    "hold",
    f"""
for n = 1, #KEYS do
  redis.call('HSET', KEYS[n], ARGV[1], ARGV[n + 1])
  redis.call('PEXPIRE', KEYS[n], {SLOTS_TTL})
end
""",
)

ADD: Final = Script(
    "add",
    f"redis.call('HINCRBY', KEYS[1], ARGV[1], 1) redis.call('PEXPIRE', KEYS[1], {SLOTS_TTL})",
)

RESTORE: Final = Script(
    "restore",
    _METERS
    + """
local length = tonumber(ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'NX')
local adds = redis.call('GET', KEYS[1]) == ARGV[1]
for n = 2, #KEYS do
  local opened, used = load(KEYS[n])
  if adds or not opened then
    opened, used = opened or now, (used or 0) + ARGV[n + 1]
    save(KEYS[n], opened + length - now, '%.0f %.0f', opened, used)
  end
end
""",
)

LEAVE: Final = Script("leave", "return redis.call('HDEL', KEYS[1], ARGV[1])")
