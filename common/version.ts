import packageJson from '../package.json' with { type: 'json' };

/** Version of this program, as its package says. */
export const version: string = packageJson.version;

/** Name and version that every manifest carries, so that a fault of one version can be traced to its backups. */
export const writerName = `stillpoint ${version}`;
