-- The components of a checkpoint: held ones are blobs of the shard that count their holders (holders.lua). Private ones
-- are fields of the session's own `state`: `p` the plugin snapshot, `x` the execution state.

-- Plans the blobs that the head acquires, keeps and releases. Returns the plan, or nil and the rest of a refusal.
-- The blobs are KEYS from `blobs` on: first the acquired ones, then the kept ones, then the released ones. ARGV from
-- `contents` on has the contents of the acquired and the kept ones, '' for a blob that must be stored.
-- The plan has one entry for each blob, by index from 0:
--   acquired   the number of its holders until `hold`, and its promise
--   released   the number of its holders until `had`, and its promise
--   kept       these two, and the number of its holders until `hold`; or 'kept' if its count does not change
--   false      the blob is not stored
-- `plan.waiting` is the number of blobs on `orphans`, or false if that list does not change.
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

-- Plans the change of `state` when the head's refs change from `before` to `after`. Returns a flat list of fields and
-- values to set, and a list of fields to drop. `plugin` and `execution` are contents, '' for no change.
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
