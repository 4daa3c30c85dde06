-- The components of a checkpoint: blobs of the shard that count their holders (holders.lua), and private ones, whose
-- bytes lie in the session's own `state`: field `p` the plugin snapshot, `x` the execution state.

-- What holding and releasing blobs does, or nil and the rest of a refusal. The blobs are KEYS from `blobs` on: those
-- newly held, those held before and after, those released. In ARGV from `contents` on stand the contents of the first
-- two ('' where a blob is only named). The plan has for each blob what it counts: acquired, the holders until `hold`;
-- released, those until `had`, and the promise; kept, these and the holders until `hold`; `kept` where its count stays;
-- false for one that is not stored. `waiting`: how many blobs wait on `orphans`; false where that list stays.
local function plan_holds(blobs, acquired, kept, contents, had, hold, orphans)
  local plan, missing, held = {waiting = false}, nil, acquired + kept
  local writes_orphans = #KEYS - blobs + 1 > held
  for index = 0, #KEYS - blobs do
    local key, counts, failed = KEYS[blobs + index], nil, nil
    if index >= held then
      counts, failed = numbers_of(key, had, 'u')
    elseif index >= acquired and had == hold then
      counts, failed = numbers_of(key, had)
    elseif index >= acquired then
      counts, failed = numbers_of(key, had, 'u', hold)
    end
    if index < acquired or index < held and counts and counts[1] == 0 then
      local there
      there, failed = is_stored(key)
      if there and index < acquired then
        writes_orphans = true
        counts, failed = numbers_of(key, hold, 'u')
      elseif there then
        counts[3] = counts[3] or 0
      else
        counts = false
        if ARGV[contents + index] == '' then
          missing = missing or {'missing'}
          missing[#missing + 1] = index
        end
      end
    elseif index < held and counts and had == hold then
      counts = 'kept'
    end
    if failed then return nil, failed end
    plan[index] = counts
  end
  if missing then return nil, missing end
  if writes_orphans then
    plan.waiting = redis.pcall('ZCARD', orphans)
    if type(plan.waiting) == 'table' then return nil, unusable('orphans', plan.waiting) end
  end
  return plan
end

-- What becomes of the session's `state` where the head's refs go from `before` to `after`: fields and values to set,
-- and fields to drop. `plugin` and `execution` are contents, '' for one that stays.
local function plan_state(before, after, plugin, execution)
  local set, drop = {}, {}
  if plugin ~= '' then
    set[1], set[2] = 'p', plugin
  elseif string.byte(before, 34) == 112 and string.byte(after, 34) ~= 112 then
    drop[1] = 'p'
  end
  if execution ~= '' then
    set[#set + 1], set[#set + 2] = 'x', execution
  elseif string.byte(before, 67) == 112 and string.byte(after, 67) ~= 112 then
    drop[#drop + 1] = 'x'
  end
  return set, drop
end
