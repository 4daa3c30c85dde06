-- The expiry of a session's keys; to be included below WRITE.

-- Let all keys of the session expire at `deadline` (ms since 1970; 0: never). `had`: they had a deadline before.
local function expire_session(facts, deadline, had, head, log, nodes, jumps, dead, state)
  if deadline > 0 then
    redis.call('PEXPIREAT', head, deadline)
    if facts.length > 0 then redis.call('PEXPIREAT', log, deadline) end
    if facts.ids > 0 then redis.call('PEXPIREAT', nodes, deadline) end
    if facts.jumps > 0 then redis.call('PEXPIREAT', jumps, deadline) end
    if facts.dead > 0 then redis.call('PEXPIREAT', dead, deadline) end
    if facts.private > 0 then redis.call('PEXPIREAT', state, deadline) end
  elseif had then
    for _, key in ipairs({head, log, nodes, jumps, dead, state}) do redis.call('PERSIST', key) end
  end
end
