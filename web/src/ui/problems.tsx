// What went wrong, in words: message and remedy first, code and request id for those who look into the log.

import type { Failure } from '../api/failure';
import { useSession } from '../state/session';
import { useStore } from '../state/store';
import { Button } from './parts';

interface ProblemProps {
  what: string;
  failure: Failure;
  onDismiss?: () => void;
}

export function ProblemBox({ what, failure, onDismiss }: ProblemProps) {
  return (
    <div class="problem" data-testid="error" data-code={failure.code}>
      <svg class="problem-icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
        <path d="M8 1l7 13H1zM7 6v4h2V6zM7 11v2h2v-2z" fill-rule="evenodd" />
      </svg>
      <div class="problem-text">
        <p class="problem-what">{what} did not work</p>
        <p data-testid="error-message">{failure.message}</p>
        {failure.remedy && (
          <p class="problem-remedy" data-testid="error-remedy">
            <strong>What helps:</strong> {failure.remedy}
          </p>
        )}
        <p class="problem-trace">
          <code data-testid="error-code">{failure.code}</code>
          {failure.requestId && (
            <>
              {' · request '}
              <code data-testid="error-request">{failure.requestId}</code>
            </>
          )}
        </p>
      </div>
      {onDismiss && (
        <Button testid="error-dismiss" kind="quiet" label={`Dismiss: ${what}`} onPress={onDismiss}>
          ✕
        </Button>
      )}
    </div>
  );
}

/** A failure where it belongs: within a dialog or a panel. The region is there before the failure, so that it is read out. */
export function ProblemHere({ what, failure, onDismiss }: { what: string; failure: Failure | null; onDismiss?: () => void }) {
  return <div role="alert">{failure && <ProblemBox what={what} failure={failure} {...(onDismiss ? { onDismiss } : {})} />}</div>;
}

/** Everything else, at the top of the page. */
export function Problems() {
  const session = useSession();
  const problems = useStore(session.problems);
  return (
    <div class="problems" role="alert" data-testid="errors">
      {problems.map(({ id, what, failure }) => (
        <ProblemBox key={id} what={what} failure={failure} onDismiss={() => session.dismiss(id)} />
      ))}
    </div>
  );
}
