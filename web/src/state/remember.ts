// The key between two loads of the page: in this tab's session storage, nowhere else.

const NAME = 'wrenn.key';

export function rememberedKey(): string | null {
  return sessionStorage.getItem(NAME);
}

export function rememberKey(key: string): void {
  sessionStorage.setItem(NAME, key);
}

export function forgetKey(): void {
  sessionStorage.removeItem(NAME);
}
