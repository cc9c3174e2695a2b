% Three blocks of feedback in MATLAB, or Octave 7 and later, beside `rtdecode gateway` on the same machine.
base = 'http://127.0.0.1:8766';
% The header says that no page of another site asks: such a page could not set it.
options = weboptions('ContentType', 'text', 'Timeout', 40, 'HeaderFields', {'X-Rtdecode' '1'});
announce = @(varargin) jsondecode(webwrite([base '/request/event'], varargin{:}, options));
run = 1; t_r_s = 1.5;
first = 8; volumes = 8; every = 14; % volumes before the first block, in each, and from one to the next
announce('kind', 'run_start', 'run', num2str(run));
seen = 0; after = 0;
for block = 0:2
    begins = first + every * block; volume = -1;
    answer = announce('kind', 'trial', 'run', num2str(run), 'trial', sprintf('r%02db%02d', run, block), ...
        'onset_s', num2str(t_r_s * begins), 'duration_s', num2str(t_r_s * volumes), ...
        'condition', sprintf('seen-%d', seen));
    if ~answer.ok, error(answer.error); end
    while volume < begins + every - 1
        found = jsondecode(webread([base '/messages'], 'topics', 'feedback', 'after', num2str(after), ...
            'wait_s', '20', options));
        after = found.after;
        for k = 1:numel(found.messages)
            message = found.messages(k);
            if iscell(message), message = message{1}; end
            if message.run ~= run, continue; end
            volume = message.volume;
            if strcmp(message.state, 'shown'), seen = message.step; end % where it is held, the last step stays
            step = sprintf('step %d of %d', seen, message.steps);
            if strcmp(message.state, 'baseline'), step = '+'; end
            fprintf('volume %d: %s\n', volume, step);
        end
    end
end
announce('kind', 'run_end', 'run', num2str(run));
