/** Text from hostile places. */

/** A line that is safe to show in a terminal: escape sequences and control characters removed, tabs kept. */
export const plain = (line: string): string =>
  line
    .replace(/\u001b\[[0-?]*[ -/]*[@-~]/g, '')
    .replace(/\u001b[\]PX^_][^\u0007\u001b]*(?:\u0007|\u001b\\)?/g, '')
    .replace(/\u001b[ -/]*[0-~]?/g, '')
    .replace(/[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, '');
